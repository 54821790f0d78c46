//! What a replica asks of the node that holds it.
//!
//! Requests go both ways between the two: a node may answer a request by its own replica, and a
//! replica that cleans up, or commits, asks for what other tablets and nodes know. This is the
//! second way, so that a tablet can be read without the node, its routes and its retries.

use super::Tablet;
use crate::command::Outcome;
use crate::message::{Fault, Request, Response};
use base::{NodeId, Scn, TabletId, TxnId};
use futures::future::BoxFuture;
use std::sync::Arc;

pub(crate) trait Home: Send + Sync {
    fn me(&self) -> NodeId;

    /// A supervisor said that `node` is dead, and it was not heard from since.
    fn is_dead(&self, node: NodeId) -> bool;

    /// There may be something to sweep: do not wait for the next round.
    fn sweep_soon(&self);

    /// The replica's leader, members or borders changed.
    fn routes_changed(&self, tablet: &Tablet);

    /// A split made `child` here, on these nodes.
    fn adopt(self: Arc<Self>, child: TabletId, members: Vec<NodeId>);

    /// Draws one SCN.
    fn draw(self: Arc<Self>) -> BoxFuture<'static, Result<Scn, Fault>>;

    /// Brings a request to the tablet's leader.
    fn ask(
        self: Arc<Self>,
        tablet: TabletId,
        request: Request,
    ) -> BoxFuture<'static, Result<Response, Fault>>;

    /// Which of `txns` does `node` run? None if it does not answer.
    fn which_run(
        self: Arc<Self>,
        node: NodeId,
        txns: Vec<TxnId>,
    ) -> BoxFuture<'static, Option<Vec<TxnId>>>;

    /// Tells all participants the decision, then lets the anchor's record expire.
    fn carry_out(
        self: Arc<Self>,
        anchor: TabletId,
        txn: TxnId,
        outcome: Outcome,
        participants: Vec<TabletId>,
    ) -> BoxFuture<'static, Result<(), Fault>>;
}
