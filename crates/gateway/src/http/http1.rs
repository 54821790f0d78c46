//! HTTP/1.1, both of its ends, for a message that passes through: nothing is handed from task to
//! task, and what is idle holds no buffers.
//!
//! * [`lines`], [`head`]: a message's head, written and read
//! * [`length`]: where its body ends: by length, in chunks, or with the connection
//! * [`io`]: a stream with what was read ahead and what is to be written
//! * [`client`]: a connection to a server
//! * [`server`]: a connection of a client
//!
//! The first two read and write bytes and do nothing else. What two readers might understand in
//! two ways is refused and not repaired (RFC 9112): a gateway stands between two readers.
//!
//! Why not hyper's, which serves all else here: its client runs each connection as a task of its
//! own, and hands request, head and body over by channels; its server keeps room for a whole
//! exchange in each connection that is idle.

pub mod client;
pub mod head;
pub mod io;
pub mod length;
pub mod lines;
pub mod server;

pub use super::error::Error;
