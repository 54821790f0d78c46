//! The one who breaks things: which fault comes when, for how long, and how it ends.
//!
//! Faults come one after the other and overlap: each is drawn by weight, does its harm, and is
//! undone by itself some time later, unless the storm ends before. What is not undone: a wiped or
//! damaged disk, whose node joins anew. At most one node's data is lost at a time, as the promise
//! goes: what a majority had synced must survive, and nobody promises more.

mod harm;

use crate::cluster::{Ask, Health};
use crate::machine::disk::{self, Faults};
use crate::machine::threads;
use crate::task;
use crate::world::{CLIENTS, Dice, World};
use std::net::IpAddr;
use std::time::Duration;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// SIGKILL to a worker; its supervisor reports it and starts it again.
    KillWorker,
    /// SIGKILL to supervisor and worker.
    KillNode,
    /// Power lost: what was not synced is lost or torn.
    PowerCut,
    ZonePowerCut,
    /// Power lost in the middle of writing the state down.
    PowerCutInFlush,
    /// Power lost everywhere at once, while every sync takes long.
    Blackout,
    /// Two groups of hosts do not hear each other.
    Partition,
    /// One direction only.
    OneWay,
    /// A leader loses its peers one after the other, and the second one restarts in between: it has
    /// forgotten what it promised.
    FadingLeader,
    SlowLinks,
    LossyLinks,
    /// Frames flipped, repeated, swapped, dropped, cut short.
    DamagedFrames,
    ResetConnections,
    /// SIGSTOP, then SIGCONT.
    Pause,
    /// A host stands still with all its clocks, as a virtual machine is paused: when it goes on, its
    /// leases look good to it.
    FrozenHost,
    /// Every turn of every thread of a host takes its time, one after the other.
    SlowHost,
    /// A bug: a task or a thread of a worker panics.
    Panic,
    WallClockJump,
    ClockDrift,
    SlowDisk,
    FailedSync,
    FullDisk,
    /// No space left in the middle of writing the state or the log.
    FullDiskInFlush,
    /// A disk is replaced by an empty one.
    WipedDisk,
    /// One bit of one stored file.
    FlippedBit,
    TransferLeaders,
    /// One node after the other is stopped and started, as for a new version.
    RollingRestart,
    /// A host that had no node gets one.
    AddNode,
}

impl Fault {
    pub const ALL: [Fault; 28] = [
        Fault::KillWorker,
        Fault::KillNode,
        Fault::PowerCut,
        Fault::ZonePowerCut,
        Fault::PowerCutInFlush,
        Fault::Blackout,
        Fault::Partition,
        Fault::OneWay,
        Fault::FadingLeader,
        Fault::SlowLinks,
        Fault::LossyLinks,
        Fault::DamagedFrames,
        Fault::ResetConnections,
        Fault::Pause,
        Fault::FrozenHost,
        Fault::SlowHost,
        Fault::Panic,
        Fault::WallClockJump,
        Fault::ClockDrift,
        Fault::SlowDisk,
        Fault::FailedSync,
        Fault::FullDisk,
        Fault::FullDiskInFlush,
        Fault::WipedDisk,
        Fault::FlippedBit,
        Fault::TransferLeaders,
        Fault::RollingRestart,
        Fault::AddNode,
    ];

    pub fn name(self) -> String {
        let mut name = String::new();
        for letter in format!("{self:?}").chars() {
            if letter.is_uppercase() && !name.is_empty() {
                name.push(' ');
            }
            name.extend(letter.to_lowercase());
        }
        name
    }
}

/// Between two faults.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    pub least: Duration,
    pub most: Duration,
}

pub struct Nemesis {
    world: World,
    dice: Dice,
    faults: Vec<(Fault, u64)>,
    pace: Pace,
    /// The node whose data is lost or in doubt, until it is whole again.
    patient: Option<usize>,
}

const MS: u64 = 1_000_000;
/// How long an operator takes to start again what has ended.
const OPERATOR: Duration = Duration::from_secs(4);
/// Leaders are handed over so often in a row.
const N_TRANSFERS_MAX: u64 = 40;
/// What a clock may be fast or slow by. Leases are promised to survive a tenth.
const DRIFT_PPM: u64 = 20_000;

impl Nemesis {
    pub fn new(world: &World, faults: Vec<(Fault, u64)>, pace: Pace) -> Nemesis {
        let dice = world.dice("nemesis", 0);
        Nemesis { world: world.clone(), dice, faults, pace, patient: None }
    }

    /// Breaks things until the storm is over.
    pub async fn run(mut self) {
        let total: u64 = self.faults.iter().map(|(_, weight)| weight).sum();
        if total == 0 {
            return;
        }
        while self.world.storming() {
            let pause = self.dice.between(self.pace.least, self.pace.most);
            self.world.sleep(pause).await;
            if !self.world.storming() {
                return;
            }
            let mut draw = self.dice.below(total);
            let chosen = self.faults.iter().find(|(_, weight)| {
                let is_it = draw < *weight;
                draw = draw.saturating_sub(*weight);
                is_it
            });
            if let Some((fault, _)) = chosen.copied() {
                self.strike(fault).await;
            }
        }
    }

    fn ip(&self, node: usize) -> IpAddr {
        self.world.cluster().nodes[node].ip
    }

    fn up(&self) -> Vec<usize> {
        let nodes = &self.world.cluster().nodes;
        nodes.iter().filter(|node| node.health() == Health::Up).map(|node| node.number).collect()
    }

    fn some_up(&mut self) -> Option<usize> {
        let up = self.up();
        (!up.is_empty()).then(|| *self.dice.pick(&up))
    }

    /// Runs `undo` after a while, if the storm still goes on; its end undoes everything anyway.
    fn later(&self, after: Duration, undo: impl FnOnce(&World) + Send + 'static) {
        let world = self.world.clone();
        task::spawn(async move {
            world.sleep(after).await;
            if world.storming() {
                undo(&world);
            }
        });
    }

    async fn strike(&mut self, fault: Fault) {
        let Some(node) = self.some_up() else { return };
        let long = self.dice.between(Duration::from_millis(500), Duration::from_secs(12));
        let world = self.world.clone();
        let cluster = world.cluster().clone();
        let name = fault.name();
        let told = |what: String| {
            world.note(format!("FAULT {name}: {what}"));
            world.count(&format!("fault: {name}"), 1);
        };
        let host = cluster.nodes[node].host;
        let here = format!("node {}", node + 1);
        match fault {
            Fault::KillWorker => {
                told(here);
                cluster.kill_worker(node);
            }
            Fault::KillNode => {
                told(format!("{here} for {long:?}"));
                cluster.kill_node(node);
                self.later(long, move |world| world.cluster().start(node));
            }
            Fault::PowerCut => {
                told(format!("{here} for {long:?}"));
                cluster.cut_power(node);
                self.later(long, move |world| world.cluster().restore_power(node));
            }
            Fault::ZonePowerCut => {
                let zone = cluster.nodes[node].zone;
                told(format!("{} for {long:?}", cluster.nodes[node].zone_name()));
                for node in cluster.nodes.iter().filter(|node| node.zone == zone) {
                    if node.health() != Health::Down && node.health() != Health::Dark {
                        let number = node.number;
                        cluster.cut_power(number);
                        self.later(long, move |world| world.cluster().restore_power(number));
                    }
                }
            }
            Fault::PowerCutInFlush => self.cut_power_in_flush(node, long, &told),
            Fault::Blackout => self.black_out(&told).await,
            Fault::FadingLeader => self.fade(&told).await,
            Fault::Partition | Fault::OneWay => {
                let (some, others) = self.two_groups(node);
                let both = fault == Fault::Partition;
                let clients_too = self.dice.one_in(3);
                told(format!("{some:?} from {others:?} for {long:?}"));
                for &a in &some {
                    let mut far: Vec<IpAddr> = others.iter().map(|b| self.ip(*b)).collect();
                    far.extend(clients_too.then_some(CLIENTS));
                    for b in far {
                        cluster.net.set_link(self.ip(a), b, |link| link.is_cut = true);
                        if both {
                            cluster.net.set_link(b, self.ip(a), |link| link.is_cut = true);
                        }
                    }
                }
                self.later(long, |world| world.cluster().net.heal());
            }
            Fault::SlowLinks | Fault::LossyLinks | Fault::DamagedFrames => {
                let amount = match fault {
                    Fault::SlowLinks => 20 + self.dice.below(480),
                    Fault::LossyLinks => 5 + self.dice.below(46),
                    _ => 1 + self.dice.below(300),
                };
                let up = self.up();
                let peer = *self.dice.pick(&up);
                let (is_hit, where_to): (Box<dyn Fn(usize, usize) -> bool>, _) =
                    match self.dice.below(3) {
                        0 => (Box::new(|_, _| true), "everywhere".to_owned()),
                        1 => (Box::new(move |a, b| a == node || b == node), here),
                        _ => {
                            let way = format!("{here} to node {}", peer + 1);
                            (Box::new(move |a, b| a == node && b == peer), way)
                        }
                    };
                told(format!("{amount} {where_to} for {long:?}"));
                for a in 0..cluster.nodes.len() {
                    for b in (0..cluster.nodes.len()).filter(|b| a != *b && is_hit(a, *b)) {
                        cluster.net.set_link(self.ip(a), self.ip(b), |link| match fault {
                            Fault::SlowLinks => {
                                link.latency_ns = (amount * MS / 2, amount * MS);
                            }
                            Fault::LossyLinks => link.loss_percent = amount,
                            _ => link.n_damaged = amount,
                        });
                    }
                }
                self.later(long, |world| world.cluster().net.heal_all());
            }
            Fault::ResetConnections => {
                let up = self.up();
                let other = *self.dice.pick(&up);
                told(format!("{here} and node {}, and {here}'s clients", other + 1));
                cluster.net.reset(self.ip(node), self.ip(other));
                cluster.net.reset(self.ip(node), CLIENTS);
            }
            Fault::Pause => {
                told(format!("{here} for {long:?}"));
                cluster.pause(node, true);
                self.later(long, move |world| world.cluster().pause(node, false));
            }
            Fault::FrozenHost => self.freeze(node, &told).await,
            Fault::SlowHost => {
                // From a busy processor to one that others have for themselves nearly all the time.
                let us = 500 << self.dice.below(10);
                let us = us + self.dice.below(us);
                told(format!("{here}, {us} us a turn for {long:?}"));
                threads::set_turn(host, us * 1_000);
                self.later(long, move |_| threads::set_turn(host, 0));
            }
            Fault::Panic => self.panic(node, &told),
            Fault::WallClockJump => {
                let minutes = self.dice.below(121) as i64 - 60;
                told(format!("{here} to {minutes} minutes off"));
                threads::set_clock(host, |clock| clock.set_wall_offset_s(minutes * 60));
            }
            Fault::ClockDrift => {
                let ppm = self.dice.below(2 * DRIFT_PPM + 1) as i64 - DRIFT_PPM as i64;
                told(format!("{here} by {ppm} ppm"));
                let now = crate::machine::clock::now_ns();
                threads::set_clock(host, |clock| clock.set_drift(now, ppm));
            }
            Fault::SlowDisk => {
                let most = 20 + self.dice.below(480);
                told(format!("{here}, up to {most} ms a sync, for {long:?}"));
                disk::set_faults(host, |faults| faults.sync_ns = (most * MS / 10, most * MS));
                self.later(long, move |_| disk::set_faults(host, |f| *f = Faults::NONE));
            }
            Fault::FailedSync => {
                told(here);
                disk::set_faults(host, |faults| faults.n_failing_syncs = 1);
                self.revive(node);
            }
            Fault::FullDisk => {
                told(format!("{here} for {long:?}"));
                disk::set_faults(host, |faults| faults.is_full = true);
                self.later(long, move |_| disk::set_faults(host, |faults| faults.is_full = false));
                self.revive(node);
            }
            Fault::FullDiskInFlush => self.fill_disk_in_flush(node, long, &told),
            Fault::WipedDisk => self.lose_disk(node, &told),
            Fault::FlippedBit => self.flip_bit(node, &told),
            Fault::TransferLeaders => {
                let n = 1 + self.dice.below(N_TRANSFERS_MAX);
                told(format!("{n} of them, {here} first"));
                let mut dice = Dice::new(self.dice.next(), "transfers", node);
                let world = self.world.clone();
                task::spawn(async move {
                    for number in (node..).take(n as usize) {
                        let nodes = &world.cluster().nodes;
                        world.cluster().ask(number % nodes.len(), Ask::Transfer(dice.next()));
                        world.sleep(Duration::from_millis(dice.below(400))).await;
                    }
                });
            }
            Fault::RollingRestart => {
                told("all nodes".into());
                for node in 0..cluster.nodes.len() {
                    if cluster.nodes[node].health() == Health::Up && world.storming() {
                        cluster.stop(node).await;
                        cluster.start(node);
                        world.sleep(Duration::from_secs(3)).await;
                    }
                }
            }
            Fault::AddNode => {
                let spare = cluster.nodes.iter().rev().take(cluster.shape.n_spare);
                let mut spare = spare.filter(|node| node.health() == Health::Down);
                if let Some(node) = spare.next_back() {
                    told(format!("node {}", node.number + 1));
                    cluster.start(node.number);
                }
            }
        }
    }
}
