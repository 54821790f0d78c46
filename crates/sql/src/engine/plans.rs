//! Plans by the statement's text.
//!
//! A plan is found again only by the same text, in the same database, with the same search path and the same parameter types,
//! and only while the catalog's generation is the one it was made at. When the cache is full, half
//! of it goes: what is in use comes back at once.

use crate::plan::Plan;
use crate::types::Type;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;

const PLANS_MAX: usize = 2_048;
/// Longer texts are not worth their memory: bulk INSERTs that never come again.
const TEXT_BYTES_MAX: usize = 4_096;

#[derive(Clone, PartialEq, Eq, Hash)]
pub(crate) struct PlanKey {
    pub text: Arc<str>,
    pub database: u32,
    pub search_path: Arc<[String]>,
    pub hints: Vec<Option<Type>>,
}

#[derive(Default)]
pub(crate) struct Plans {
    by_text: Mutex<HashMap<PlanKey, Arc<Plan>>>,
}

impl Plans {
    pub fn get(&self, key: &PlanKey, generation: u64) -> Option<Arc<Plan>> {
        let plans = self.by_text.lock();
        plans.get(key).filter(|plan| plan.generation == generation).cloned()
    }

    pub fn put(&self, key: PlanKey, plan: &Arc<Plan>) {
        if key.text.len() > TEXT_BYTES_MAX || plan.is_private {
            return;
        }
        let mut plans = self.by_text.lock();
        if plans.len() >= PLANS_MAX {
            let mut keep = false;
            plans.retain(|_, _| {
                keep = !keep;
                keep
            });
        }
        plans.insert(key, plan.clone());
    }
}
