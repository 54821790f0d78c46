//! The node as its own replicas see it.

use super::Node;
use crate::command::Outcome;
use crate::message::{Fault, Request, Response};
use crate::tablet::{Home, Tablet};
use base::{NodeId, Scn, TabletId, TxnId};
use futures::future::BoxFuture;
use std::sync::Arc;

impl Home for Node {
    fn me(&self) -> NodeId {
        self.me
    }

    fn is_dead(&self, node: NodeId) -> bool {
        self.dead.read().contains(&node)
    }

    fn sweep_soon(&self) {
        self.sweep_soon.notify_one();
    }

    fn routes_changed(&self, tablet: &Tablet) {
        Node::routes_changed(self, tablet);
    }

    fn adopt(self: Arc<Self>, child: TabletId, members: Vec<NodeId>) {
        Node::adopt(&self, child, members);
    }

    fn draw(self: Arc<Self>) -> BoxFuture<'static, Result<Scn, Fault>> {
        Box::pin(async move { Node::draw(&self).await })
    }

    fn ask(
        self: Arc<Self>,
        tablet: TabletId,
        request: Request,
    ) -> BoxFuture<'static, Result<Response, Fault>> {
        Box::pin(async move { Node::ask(&self, tablet, request).await })
    }

    fn which_run(
        self: Arc<Self>,
        node: NodeId,
        txns: Vec<TxnId>,
    ) -> BoxFuture<'static, Option<Vec<TxnId>>> {
        Box::pin(async move { Node::which_run(&self, node, txns).await })
    }

    fn carry_out(
        self: Arc<Self>,
        anchor: TabletId,
        txn: TxnId,
        outcome: Outcome,
        participants: Vec<TabletId>,
    ) -> BoxFuture<'static, Result<(), Fault>> {
        Box::pin(async move { Node::carry_out(&self, anchor, txn, outcome, &participants).await })
    }
}
