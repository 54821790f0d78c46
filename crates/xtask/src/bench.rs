//! `cargo xtask bench`: Atoll beside others of its kind, on this machine, in the same run, in turn;
//! medians over rounds, and ratios. `kills` has nobody beside it.

pub mod gateway;
pub mod kills;
pub mod sql;

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}
