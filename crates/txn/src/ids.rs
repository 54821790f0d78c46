//! Numbers that no node ever gives out twice: the ids of transactions, and those of rows without a
//! primary key.
//!
//! A number is made of the node's id, a *block* and a count within the block:
//!
//! ```text
//! 16 bits node | 24 bits block | 24 bits count          node 3, block 7, the 5th: 3 << 48 | 7 << 24 | 5
//! ```
//!
//! One start of one node uses a block, for one purpose: the node's data directory remembers the blocks that it
//! has given out ([`Blocks`]). A start takes one block per purpose. When half of a block is used, it takes the
//! next one in the background, long before it is needed. At 20,000 transactions per second a block lasts for 14
//! minutes and all blocks for 446 years; with a crash every five seconds they last for more than a year.
//!
//! Invariants: each number is larger than all that were drawn from the same source before. A node whose directory
//! cannot note a block halts, because it could give out a number twice.

use base::env::Runtime;
use base::{Env, NodeId};
use parking_lot::Mutex;
use std::sync::Arc;

/// Gives out a block that this node has never had before, and remembers it durably.
pub type Blocks = Arc<dyn Fn() -> Result<u64, String> + Send + Sync>;

const BLOCK_BITS: u32 = 24;
const COUNT_BITS: u32 = 24;
const BLOCK_MAX: u64 = (1 << BLOCK_BITS) - 1;
const COUNT_END: u64 = 1 << COUNT_BITS;

/// The largest id that a node may have.
pub const NODE_MAX: u64 = (1 << 16) - 1;

/// A source of numbers.
pub(crate) struct Ids {
    env: Env,
    node: NodeId,
    blocks: Blocks,
    drawn: Mutex<Drawn>,
}

struct Drawn {
    block: u64,
    count: u64,
    /// The block to go on with.
    spare: Option<u64>,
    asking: bool,
}

impl Ids {
    pub(crate) fn new(env: Env, node: NodeId, blocks: Blocks) -> Result<Arc<Ids>, String> {
        if node.0 > NODE_MAX {
            return Err(format!("a node's id must not exceed {NODE_MAX}, and this is {node}"));
        }
        let block = checked(blocks()?)?;
        let drawn = Drawn { block, count: 0, spare: None, asking: false };
        Ok(Arc::new(Ids { env, node, blocks, drawn: Mutex::new(drawn) }))
    }

    pub(crate) fn next(self: &Arc<Self>) -> u64 {
        let mut drawn = self.drawn.lock();
        if drawn.count == COUNT_END {
            let block = match drawn.spare.take() {
                Some(block) => Ok(block),
                // The disk took longer than half a block lasts: wait for it.
                None => (self.blocks)().and_then(checked),
            };
            match block {
                Ok(block) => (drawn.block, drawn.count) = (block, 0),
                Err(reason) => self.env.halt(format!("no ids can be given out: {reason}")),
            }
        }
        let number =
            self.node.0 << (BLOCK_BITS + COUNT_BITS) | drawn.block << COUNT_BITS | drawn.count;
        drawn.count = (drawn.count + 1).min(COUNT_END);
        if drawn.count >= COUNT_END / 2 && drawn.spare.is_none() && !drawn.asking {
            drawn.asking = true;
            let this = self.clone();
            self.env.on(Runtime::Serve).spawn("a block of ids", async move { this.ask().await });
        }
        number
    }

    async fn ask(self: Arc<Self>) {
        let blocks = self.blocks.clone();
        let block = tokio::task::spawn_blocking(move || blocks().and_then(checked)).await;
        let mut drawn = self.drawn.lock();
        drawn.asking = false;
        match block {
            Ok(Ok(block)) => drawn.spare = Some(block),
            Ok(Err(reason)) => self.env.halt(format!("no ids can be given out: {reason}")),
            // The process is ending.
            Err(_) => {}
        }
    }
}

fn checked(block: u64) -> Result<u64, String> {
    match block <= BLOCK_MAX {
        true => Ok(block),
        false => Err(format!("this node has used up all {BLOCK_MAX} blocks of ids")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base::env::MemoryNet;
    use std::collections::HashSet;
    use std::sync::atomic::{AtomicU64, Ordering};

    fn env() -> Env {
        Env::seeded(1, Arc::new(MemoryNet::default()))
    }

    fn from(first: u64) -> Blocks {
        let next = AtomicU64::new(first);
        Arc::new(move || Ok(next.fetch_add(1, Ordering::Relaxed)))
    }

    #[tokio::test]
    async fn a_block_is_followed_by_another_and_no_number_comes_twice() {
        let (env, blocks) = (env(), from(5));
        let ids = Ids::new(env, NodeId(NODE_MAX), blocks.clone()).unwrap();
        let others = Ids::new(self::env(), NodeId(NODE_MAX), blocks).unwrap();
        ids.drawn.lock().count = COUNT_END - 10;
        others.drawn.lock().count = COUNT_END - 10;
        let mut seen = HashSet::new();
        let mut last = 0;
        for _ in 0..20 {
            let number = ids.next();
            assert!(number > last, "{number:x} after {last:x}");
            last = number;
            assert!(seen.insert(number) && seen.insert(others.next()));
            assert_eq!(base::TxnId(number).node(), NodeId(NODE_MAX));
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_node_that_cannot_note_a_block_halts() {
        let env = env();
        let calls = AtomicU64::new(0);
        let blocks: Blocks = Arc::new(move || match calls.fetch_add(1, Ordering::Relaxed) {
            0 => Ok(1),
            _ => Err("the disk is full".into()),
        });
        let ids = Ids::new(env.clone(), NodeId(1), blocks).unwrap();
        ids.drawn.lock().count = COUNT_END;
        ids.next();
        assert!(env.halted().await.reason.contains("the disk is full"));
        assert!(Ids::new(env.clone(), NodeId(1), from(BLOCK_MAX + 1)).is_err());
        assert!(Ids::new(env, NodeId(NODE_MAX + 1), from(1)).is_err());
    }
}
