//! Harm that takes more than one step, or more than one victim.

use super::{MS, Nemesis, OPERATOR};
use crate::cluster::Health;
use crate::machine::disk::{self, Faults, Room};
use crate::machine::threads::Mishap;
use crate::task;
use crate::world::{Dice, World};
use std::time::Duration;

/// A leader fades so often in a row.
const N_FADES_MAX: u64 = 4;
/// A flush of the state syncs about so many files and directories.
const N_SYNCS_OF_A_FLUSH: u64 = 16;
/// A flush begins within about this time.
const FLUSH_COMES: Duration = Duration::from_secs(20);
/// A flush writes about so often to the trees' files; the log is written to all the time.
const N_WRITES_OF_A_FLUSH: u64 = 60;
/// A node whose disk is full has stopped after this long: flushes that fail may be tried again first.
const STOPS_WITHIN: Duration = Duration::from_secs(10);
/// No lease lasts so long.
const LEASES: Duration = Duration::from_millis(1_500);
/// Polls and waits of a worker in a second or so.
const N_CHANCES: u64 = 4_000;

impl Nemesis {
    pub(super) fn cut_power_in_flush(
        &mut self,
        node: usize,
        long: Duration,
        told: &impl Fn(String),
    ) {
        let n_syncs = self.dice.below(N_SYNCS_OF_A_FLUSH);
        let host = self.world.cluster().nodes[node].host;
        disk::set_faults(host, |faults| faults.power_fails_after = Some(n_syncs));
        told(format!("node {} for {long:?}, after {n_syncs} syncs", node + 1));
        let world = self.world.clone();
        task::spawn(async move {
            let end = world.now() + FLUSH_COMES;
            while world.storming() && disk::awaits_power_failure(host) {
                if world.now() > end {
                    disk::set_faults(host, |faults| faults.power_fails_after = None);
                    return;
                }
                world.sleep(Duration::from_millis(20)).await;
            }
            if !world.storming() {
                return;
            }
            world.note(format!("node {} has lost its power", node + 1));
            world.count("power cuts in a flush", 1);
            world.cluster().cut_power(node);
            world.sleep(long).await;
            if world.storming() {
                world.cluster().restore_power(node);
            }
        });
    }

    pub(super) fn fill_disk_in_flush(
        &mut self,
        node: usize,
        long: Duration,
        told: &impl Fn(String),
    ) {
        let room = *self.dice.pick(&[Room::State, Room::State, Room::Log]);
        let n_writes = self.dice.below(N_WRITES_OF_A_FLUSH);
        let host = self.world.cluster().nodes[node].host;
        let n_refused = disk::counts(host).n_refused_writes;
        disk::set_faults(host, |faults| faults.fills_after = Some((room, n_writes)));
        told(format!("node {} for {long:?}, after {n_writes} writes to the {room:?}", node + 1));
        let world = self.world.clone();
        task::spawn(async move {
            let (end, life) = (world.now() + FLUSH_COMES, world.cluster().life(node));
            while world.storming() && disk::awaits_filling(host) && world.now() < end {
                world.sleep(Duration::from_millis(20)).await;
            }
            disk::set_faults(host, |faults| faults.fills_after = None);
            if !world.storming() || disk::counts(host).n_refused_writes == n_refused {
                return;
            }
            world.note(format!("the disk of node {} is full", node + 1));
            world.count("disks full in a flush", 1);
            // Whoever goes on acknowledges what it cannot keep.
            world.sleep(STOPS_WITHIN.max(long)).await;
            let still_up = |world: &World| {
                let cluster = world.cluster();
                cluster.life(node) == life && cluster.nodes[node].health() == Health::Up
            };
            if world.storming() && still_up(&world) {
                world.wrong(format!("node {} goes on with a full disk", node + 1));
            }
            if world.storming() {
                disk::set_faults(host, |faults| faults.is_full = false);
            }
        });
        self.revive(node);
    }

    /// Stops a host with its clocks, and lets it go on long after its successors were elected, or a
    /// moment before. Most often one that leads, which is whom it could mislead; and often one of the
    /// others does not reach it at first, so that it does not hear at once that it leads no more.
    pub(super) async fn freeze(&mut self, node: usize, told: &impl Fn(String)) {
        let leading = self.leading().await;
        let node = if self.dice.one_in(4) { node } else { leading.unwrap_or(node) };
        let cluster = self.world.cluster();
        if cluster.nodes[node].health() != Health::Up || !cluster.freeze(node, true) {
            return;
        }
        let long = self.dice.between(Duration::from_millis(300), Duration::from_secs(6));
        let mut others: Vec<usize> = self.up().into_iter().filter(|up| *up != node).collect();
        let far = match others.len() {
            0 | 1 => None,
            n => Some(others.swap_remove(self.dice.below(n as u64) as usize)),
        };
        let far = far.filter(|_| !self.dice.one_in(3));
        let then = far.map_or(String::new(), |far| format!(", then without node {}", far + 1));
        told(format!("node {} for {long:?}{then}", node + 1));
        let cut = move |world: &World, is_cut: bool| {
            let net = &world.cluster().net;
            if let Some(far) = far {
                let (a, b) = (world.cluster().nodes[node].ip, world.cluster().nodes[far].ip);
                net.set_link(a, b, |link| link.is_cut = is_cut);
                net.set_link(b, a, |link| link.is_cut = is_cut);
            }
        };
        self.later(long, move |world| {
            cut(world, true);
            world.thaw(node);
        });
        self.later(long + LEASES, move |world| cut(world, false));
    }

    pub(super) fn panic(&mut self, node: usize, told: &impl Fn(String)) {
        let n = self.dice.below(N_CHANCES);
        let mishap = if self.dice.one_in(3) { Mishap::AtWait(n) } else { Mishap::AtPoll(n) };
        if self.world.cluster().set_mishap(node, Some(mishap)) {
            told(format!("node {}, {mishap:?}", node + 1));
        }
    }

    pub(super) async fn black_out(&mut self, told: &impl Fn(String)) {
        let cluster = self.world.cluster().clone();
        let most = 20 + self.dice.below(480);
        let slow = self.dice.between(Duration::from_millis(200), Duration::from_secs(3));
        let long = self.dice.between(Duration::from_millis(500), Duration::from_secs(6));
        told(format!("up to {most} ms a sync for {slow:?}, and then no power for {long:?}"));
        let set = |fault: Faults| {
            cluster.nodes.iter().for_each(|node| disk::set_faults(node.host, |f| *f = fault));
        };
        set(Faults { sync_ns: (most * MS / 10, most * MS), ..Faults::NONE });
        self.world.sleep(slow).await;
        set(Faults::NONE);
        if !self.world.storming() {
            return;
        }
        for node in &cluster.nodes {
            if !matches!(node.health(), Health::Down | Health::Dark) {
                let number = node.number;
                cluster.cut_power(number);
                self.later(long, move |world| world.cluster().restore_power(number));
            }
        }
    }

    /// Who leads most of those that are up and answer.
    pub(super) async fn leading(&self) -> Option<usize> {
        let mut most = None;
        for node in self.up() {
            if let Some(groups) = self.world.cluster().standings(node).await {
                let n_led = groups.iter().filter(|group| group.is_led_here).count();
                most = most.max(Some((n_led, node)));
            }
        }
        most.map(|(_, node)| node)
    }

    pub(super) async fn fade(&mut self, told: &impl Fn(String)) {
        for _ in 0..=self.dice.below(N_FADES_MAX) {
            let Some(node) = self.leading().await else { return };
            let mut others: Vec<usize> = self.up().into_iter().filter(|up| *up != node).collect();
            if others.len() < 2 || !self.world.storming() {
                return;
            }
            let first = others.swap_remove(self.dice.below(others.len() as u64) as usize);
            let second = *self.dice.pick(&others);
            // Long enough to want to lead, and often not long enough to miss an entry.
            let alone = self.dice.between(Duration::from_millis(800), Duration::from_millis(2_500));
            let (number, then) = (node + 1, second + 1);
            told(format!("node {number} loses node {}, {alone:?} later {then}", first + 1));
            let cut = move |world: &World, other: usize, is_cut: bool| {
                let nodes = &world.cluster().nodes;
                let (a, b) = (nodes[node].ip, nodes[other].ip);
                for (from, to) in [(a, b), (b, a)] {
                    world.cluster().net.set_link(from, to, |link| link.is_cut = is_cut);
                }
            };
            cut(&self.world, first, true);
            self.world.sleep(alone).await;
            if self.world.storming() {
                self.world.cluster().kill_worker(second);
                cut(&self.world, second, true);
                let long = self.dice.between(Duration::from_millis(500), Duration::from_secs(2));
                self.world.sleep(long).await;
            }
            cut(&self.world, first, false);
            cut(&self.world, second, false);
        }
    }

    /// Two groups that a switch could part: a zone and the rest, or one node and some others.
    pub(super) fn two_groups(&mut self, node: usize) -> (Vec<usize>, Vec<usize>) {
        let nodes = &self.world.cluster().nodes;
        let zone = nodes[node].zone;
        let by_zone = self.dice.one_in(2);
        let some: Vec<usize> = (0..nodes.len())
            .filter(|other| if by_zone { nodes[*other].zone == zone } else { *other == node })
            .collect();
        let mut others: Vec<usize> =
            (0..nodes.len()).filter(|other| !some.contains(other)).collect();
        if !by_zone && self.dice.one_in(2) {
            let kept = self.dice.below(others.len() as u64).max(1) as usize;
            others.truncate(kept);
        }
        (some, others)
    }

    /// What an operator does about a node whose supervisor has given up: start it again.
    pub(super) fn revive(&self, node: usize) {
        let world = self.world.clone();
        task::spawn(async move {
            for _ in 0..30 {
                world.sleep(OPERATOR).await;
                if !world.storming() {
                    return;
                }
                if matches!(world.cluster().nodes[node].health(), Health::Exited(_)) {
                    world.cluster().start(node);
                }
            }
        });
    }

    /// Whether a node's data may be lost now: everybody else must be well.
    pub(super) fn may_lose_data(&mut self, node: usize) -> bool {
        let nodes = &self.world.cluster().nodes;
        let joined = nodes.iter().filter(|node| node.health() != Health::Down).count();
        self.patient.is_none() && self.up().len() == joined && joined > 2 && node < nodes.len()
    }

    pub(super) fn lose_disk(&mut self, node: usize, told: &impl Fn(String)) {
        if !self.may_lose_data(node) {
            return;
        }
        // Once a run: that the newcomer has everything again is known only after the storm.
        self.patient = Some(node);
        told(format!("node {}", node + 1));
        if let Err(error) = self.world.cluster().wipe(node) {
            self.world.wrong(format!("the disk of node {} cannot be wiped: {error}", node + 1));
        }
        self.later(OPERATOR, move |world| world.cluster().start(node));
    }

    pub(super) fn flip_bit(&mut self, node: usize, told: &impl Fn(String)) {
        if !self.may_lose_data(node) {
            return;
        }
        self.patient = Some(node);
        let root = disk::files(self.world.cluster().nodes[node].host);
        match flip(&root, &mut self.dice) {
            Some(what) => {
                self.world.set_damaged(node);
                told(format!("node {}: {what}", node + 1));
            }
            None => self.patient = None,
        }
    }
}

/// Flips one bit of one of the files with checksums under `root`; says where.
fn flip(root: &std::path::Path, dice: &mut Dice) -> Option<String> {
    use std::os::unix::fs::FileExt;
    let mut files = Vec::new();
    let mut dirs = vec![root.join("log"), root.join("state")];
    while let Some(dir) = dirs.pop() {
        let mut entries: Vec<_> =
            std::fs::read_dir(&dir).ok()?.flatten().map(|entry| entry.path()).collect();
        entries.sort();
        for path in entries {
            match path.metadata() {
                Ok(metadata) if metadata.is_dir() => dirs.push(path),
                Ok(metadata) if metadata.len() > 0 => files.push((path, metadata.len())),
                _ => {}
            }
        }
    }
    files.sort();
    if files.is_empty() {
        return None;
    }
    let (path, len) = dice.pick(&files).clone();
    let (at, bit) = (dice.below(len), dice.below(8));
    let file = std::fs::OpenOptions::new().read(true).write(true).open(&path).ok()?;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).ok()?;
    file.write_all_at(&[byte[0] ^ (1 << bit)], at).ok()?;
    Some(format!("bit {bit} of byte {at} of {}", path.strip_prefix(root).ok()?.display()))
}
