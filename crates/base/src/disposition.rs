//! What the caller of a failed operation should do next.

/// Every error type of the house answers `disposition()` with one of these, so that retry loops
/// decide by meaning and never by matching on texts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The same request, to the same place, may succeed later.
    Retry,
    /// Another replica or node may serve it at once.
    RetryElsewhere,
    /// Asking again changes nothing: tell the user.
    Refuse,
    /// This process can no longer be trusted with its data: stop it with one clear line.
    Halt,
}
