//! What is simulated: the shape of the cluster, who works on it, and what goes wrong.

use crate::cluster::Shape;
use crate::nemesis::{Fault, Pace};
use crate::script::Script;
use crate::world::Dice;
use std::time::Duration;

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    faults: &'static [(Fault, u64)],
    /// Seconds between two faults, at least and at most.
    pace_s: (u64, u64),
    n_zones: usize,
    n_per_zone: usize,
    n_spare: usize,
}

/// One scenario as one seed plays it.
pub struct Plan {
    pub shape: Shape,
    pub storm: Duration,
    pub faults: Vec<(Fault, u64)>,
    pub pace: Pace,
    pub workloads: Vec<&'static str>,
    /// The year's events come instead of faults.
    pub is_year: bool,
    /// What happens is written down, and comes instead of faults.
    pub script: Option<Script>,
    /// One way between zones, in nanoseconds.
    pub latency_ns: (u64, u64),
}

use Fault::*;

pub const SCENARIOS: [Scenario; 12] = [
    Scenario {
        name: "calm",
        about: "no faults: what fails here fails everywhere",
        faults: &[],
        pace_s: (1, 1),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 0,
    },
    Scenario {
        name: "crash",
        about: "processes, hosts and zones die and come back; bugs",
        faults: &[
            (KillWorker, 4),
            (KillNode, 3),
            (PowerCut, 4),
            (ZonePowerCut, 2),
            (Blackout, 2),
            (PowerCutInFlush, 2),
            (Panic, 3),
            (TransferLeaders, 1),
        ],
        pace_s: (2, 12),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 0,
    },
    Scenario {
        name: "network",
        about: "partitions, one-way links, slow, lossy and damaging ones",
        faults: &[
            (Partition, 4),
            (OneWay, 3),
            (FadingLeader, 3),
            (SlowLinks, 2),
            (LossyLinks, 2),
            (DamagedFrames, 3),
            (ResetConnections, 2),
            (TransferLeaders, 1),
        ],
        pace_s: (2, 10),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 0,
    },
    Scenario {
        name: "links",
        about: "some links much slower than others, so that messages overtake; leaders on the move",
        faults: &[(SlowLinks, 6), (LossyLinks, 2), (TransferLeaders, 3)],
        pace_s: (1, 5),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 0,
    },
    Scenario {
        name: "time",
        about: "paused processes, frozen and slow hosts, clocks that jump and drift, slow disks and links",
        faults: &[
            (Pause, 4),
            (FrozenHost, 4),
            (SlowHost, 3),
            (WallClockJump, 2),
            (ClockDrift, 3),
            (SlowDisk, 2),
            (SlowLinks, 1),
            (KillWorker, 1),
            (TransferLeaders, 1),
        ],
        pace_s: (2, 10),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 0,
    },
    Scenario {
        name: "disk",
        about: "power cuts, failed syncs, full, slow, wiped and damaged disks",
        faults: &[
            (PowerCut, 3),
            (PowerCutInFlush, 4),
            (Blackout, 1),
            (SlowDisk, 2),
            (FailedSync, 2),
            (FullDisk, 1),
            (FullDiskInFlush, 4),
            (WipedDisk, 2),
            (FlippedBit, 2),
        ],
        pace_s: (3, 15),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 0,
    },
    Scenario {
        name: "operations",
        about: "nodes added and replaced, leaders moved, rolling restarts, now and then a crash",
        faults: &[
            (RollingRestart, 3),
            (AddNode, 3),
            (WipedDisk, 2),
            (TransferLeaders, 6),
            (KillWorker, 2),
            (PowerCut, 1),
        ],
        pace_s: (3, 12),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 2,
    },
    Scenario {
        name: "zone-loss",
        about: "a whole zone at a time, on five zones",
        faults: &[
            (ZonePowerCut, 4),
            (Partition, 2),
            (Blackout, 1),
            (KillWorker, 1),
            (TransferLeaders, 1),
        ],
        pace_s: (4, 15),
        n_zones: 5,
        n_per_zone: 1,
        n_spare: 0,
    },
    Scenario {
        name: "everything",
        about: "all faults at once, on three zones",
        faults: &[],
        pace_s: (1, 8),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 1,
    },
    Scenario {
        name: "storm",
        about: "a few faults, drawn by the seed, in quick succession",
        faults: &[],
        pace_s: (0, 3),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 1,
    },
    Scenario {
        name: "google-year",
        about: "the first year of a cluster, as Jeff Dean lists it; not part of the suite",
        faults: &[],
        pace_s: (1, 1),
        n_zones: 3,
        n_per_zone: 3,
        n_spare: 0,
    },
    Scenario {
        name: "late-commit",
        about: "a script: a commit that waits while its coordinator tells its client \"aborted\"",
        faults: &[],
        pace_s: (1, 1),
        n_zones: 3,
        n_per_zone: 1,
        n_spare: 0,
    },
];

/// Scripts, and the seeds that the suite plays them with.
pub const SCRIPTS: [(u64, &str); 1] = [(1, "late-commit")];

/// Seeds that found a bug, the oldest first.
pub const REGRESSIONS: [(u64, &str); 19] = [
    // A log file whose making a power cut had torn was taken for damage.
    (1, "disk"),
    // A log with files kept for reuse looked like one with a file lost.
    (3, "calm"),
    (6, "crash"),
    // A flipped bit in a frame's length silenced a connection for good.
    (24, "network"),
    // An index built after a snapshot was used for it, and had nothing to show.
    (9, "time"),
    (27, "calm"),
    (43, "zone-loss"),
    (23, "storm"),
    // A node that was away did not know the newcomer that led by now, and had nobody to ask.
    (1_795_664_415_000, "disk"),
    // Those who looked for a key together each took another for the one who looked.
    (1_795_664_415_001, "storm"),
    // A change of members that its leader had left half done stayed so.
    (500_000, "operations"),
    // Who asked twice to be let in was let in twice, and replicas moved to a node that never was.
    (600_000, "everything"),
    (900_063, "everything"),
    // A newcomer that was killed while it asked was let in twice, and its first self replaced it.
    (4_000_098, "storm"),
    // Who was left out of a tablet asked the leader of that day for ever.
    (5_000_163, "everything"),
    // A flipped bit in the log killed one replica, and its node went on without it.
    (7_000_358, "disk"),
    // Not the product's: nobody started a node whose damage was found after the judges had read.
    (9_000_096, "everything"),
    // A dropped table took rows: an older change of it was carried out after the DROP.
    (900_090, "zone-loss"),
    // A part that was not proposed left its mark, and readers waited for it for ever.
    (2_100_052, "crash"),
];

impl Scenario {
    /// Played by the suite, and not only by its name.
    pub fn is_in_suite(&self) -> bool {
        self.name != "google-year" && self.script().is_none()
    }

    fn script(&self) -> Option<Script> {
        match self.name {
            "late-commit" => Some(Script::LateCommit),
            _ => None,
        }
    }

    pub fn find(name: &str) -> Result<&'static Scenario, String> {
        SCENARIOS.iter().find(|scenario| scenario.name == name).ok_or_else(|| {
            let lines: Vec<String> =
                SCENARIOS.iter().map(|s| format!("  {:<12} {}", s.name, s.about)).collect();
            format!("there is no scenario {name:?}; there are\n{}", lines.join("\n"))
        })
    }

    pub fn plan(&self, seed: u64) -> Plan {
        let mut dice = Dice::new(seed, "plan", 0);
        let all = || Fault::ALL.iter().map(|fault| (*fault, 1));
        let faults: Vec<(Fault, u64)> = match self.name {
            "everything" => all().collect(),
            "storm" => {
                let mut few: Vec<_> = all().filter(|_| dice.one_in(4)).collect();
                few.push((KillWorker, 1));
                few
            }
            _ => self.faults.to_vec(),
        };
        let second = Duration::from_secs(1);
        let pace =
            Pace { least: second * self.pace_s.0 as u32, most: second * self.pace_s.1 as u32 };
        let names = crate::workload::all();
        let mut workloads = vec![*dice.pick(&names), *dice.pick(&names)];
        if dice.one_in(4) {
            workloads.push(*dice.pick(&names));
        }
        let is_year = self.name == "google-year";
        if is_year {
            workloads = vec!["bank", "unique"];
        }
        if self.script().is_some() {
            workloads.clear();
        }
        workloads.sort_unstable();
        workloads.dedup();
        let far = 500_000 * (1 + dice.below(6));
        Plan {
            shape: Shape {
                n_zones: self.n_zones,
                n_per_zone: self.n_per_zone,
                n_spare: self.n_spare,
            },
            storm: Duration::from_secs(60 + dice.below(181)),
            faults,
            pace,
            workloads,
            is_year,
            script: self.script(),
            latency_ns: (far / 2, far),
        }
    }
}
