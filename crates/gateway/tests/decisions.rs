//! What the core decides, as scripts with recorded outcomes. A script's commands begin with `> `;
//! what they answer stands below them. `ATOLL_RECORD=1` writes the answers anew, to be read.
//!
//! | command | does |
//! |---|---|
//! | `fleet a=1,2 b=3 closeness=a/b,c NAME=VALUE …` | servers by zone, tiers, settings |
//! | `send N [MS]` | N requests, one after the other, each answered after MS (1); who got them |
//! | `hold N` | N requests that stay under way; who got them |
//! | `answer [MS]` | answers all that are held |
//! | `fail SERVER N KIND` | N attempts at one server fail: unreachable, broken, 500, or time out |
//! | `slow SERVER MS` | from now on this server takes MS |
//! | `wait S` | S seconds pass, in steps of a tenth |
//! | `probe SERVER well\|unwell [MS]` | the looks at servers that are due; this one's shows that, after MS (1) |
//! | `servers a=1 b=2 …` | names the servers anew |
//! | `show` | zones and servers as they stand |
//! | `breaker NAME=VALUE …`, `ask N ok\|failed\|slow`, `state` | a breaker's life |
//! | `budget NAME=VALUE …`, `requests N`, `retries N` | how many retries are granted |
//! | `bulkhead NAME=VALUE …`, `enter N PRIORITY`, `load S N MS` | who is let in; the limit under load |

use base::env::{Env, Instant, MemoryNet};
use gateway::balance::settings::HealthCheck;
use gateway::balance::{Attempt, Closeness, Ended, Event, Fleet, ServerSpec, Settings};
use gateway::isolate::breaker::{self, Breaker};
use gateway::isolate::budget::{self, Budget};
use gateway::isolate::bulkhead::{self, Bulkhead, Priority};
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

#[test]
fn decisions_are_as_recorded() {
    let dir = Path::new("tests/decisions");
    let mut names: Vec<_> =
        std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    assert!(names.len() >= 8, "the scripts are missing");
    let mut differ = Vec::new();
    for path in names {
        let script = std::fs::read_to_string(&path).unwrap();
        let played = play(&script);
        if std::env::var_os("ATOLL_RECORD").is_some() {
            std::fs::write(&path, &played).unwrap();
        } else if played != script {
            differ.push(format!("{}:\n{played}", path.display()));
        }
    }
    assert!(differ.is_empty(), "these came out differently:\n{}", differ.join("\n"));
}

fn play(script: &str) -> String {
    let mut stage = Stage::new();
    let mut out = String::new();
    for line in script.lines() {
        if let Some(command) = line.strip_prefix("> ") {
            writeln!(out, "{line}").unwrap();
            out.push_str(&stage.run(command));
        } else if line.starts_with('#') || line.is_empty() {
            writeln!(out, "{line}").unwrap();
        }
    }
    out
}

struct Stage {
    now: Instant,
    fleet: Option<Fleet>,
    held: Vec<Attempt>,
    slow: BTreeMap<u16, u64>,
    breaker: Option<Breaker>,
    budget: Option<Budget>,
    bulkhead: Option<Bulkhead>,
}

impl Stage {
    fn new() -> Stage {
        let now = Env::seeded(1, Arc::new(MemoryNet::default())).now();
        Stage {
            now,
            fleet: None,
            held: Vec::new(),
            slow: BTreeMap::new(),
            breaker: None,
            budget: None,
            bulkhead: None,
        }
    }

    fn run(&mut self, command: &str) -> String {
        let words: Vec<&str> = command.split_whitespace().collect();
        let number = |idx: usize| words.get(idx).map_or(1, |word| word.parse().unwrap());
        match words[0] {
            "fleet" => self.found(&words[1..]),
            "servers" => {
                let (now, specs) = (self.now, specs(&words[1..]));
                self.fleet().set_servers(now, specs);
            }
            "send" => {
                return self.send(number(1), words.get(2).map_or(1, |ms| ms.parse().unwrap()));
            }
            "hold" => return self.hold(number(1)),
            "answer" => self.answer(number(1)),
            "fail" => self.fail(words[1].parse().unwrap(), number(2), words[3]),
            "slow" => {
                self.slow.insert(words[1].parse().unwrap(), number(2));
            }
            "wait" => return self.wait(words[1].parse().unwrap()),
            "probe" => {
                let ms = words.get(3).map_or(1, |ms| ms.parse().unwrap());
                let well = (words[2] == "well").then_some(Duration::from_millis(ms));
                return self.probe(words[1].parse().unwrap(), well);
            }
            "show" => return self.show(),
            "breaker" => self.breaker = Some(Breaker::new(self.now, breaker_settings(&words[1..]))),
            "ask" => return self.ask(number(1), words[2]),
            "state" => return format!("{:?}\n", self.breaker.as_ref().unwrap().state()),
            "budget" => self.budget = Some(Budget::new(self.now, budget_settings(&words[1..]))),
            "requests" => {
                (0..number(1)).for_each(|_| self.budget.as_mut().unwrap().deposit(self.now));
            }
            "retries" => {
                let budget = self.budget.as_mut().unwrap();
                let n = (0..number(1)).filter(|_| budget.withdraw(self.now)).count();
                return format!("{n} granted\n");
            }
            "bulkhead" => {
                self.bulkhead = Some(Bulkhead::new(self.now, bulkhead_settings(&words[1..])));
            }
            "enter" => {
                let bulkhead = self.bulkhead.as_mut().unwrap();
                let priority = Priority::of(words[2]).unwrap();
                let n = (0..number(1)).filter(|_| bulkhead.admit(priority)).count();
                return format!("{n} let in, {} under way\n", bulkhead.n_in_flight());
            }
            "load" => return self.load(number(1), number(2), number(3)),
            other => panic!("there is no command {other:?}"),
        }
        String::new()
    }

    fn fleet(&mut self) -> &mut Fleet {
        self.fleet.as_mut().unwrap()
    }

    fn found(&mut self, words: &[&str]) {
        let mut settings = Settings { warm_up: Duration::ZERO, ..Settings::default() };
        let mut closeness = Closeness::default();
        for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
            let float = || value.parse::<f64>().unwrap();
            let count = || value.parse::<u32>().unwrap();
            let seconds = || Duration::from_secs_f64(value.parse().unwrap());
            match name {
                "closeness" => {
                    let tier = |tier: &str| tier.split(',').map(str::to_owned).collect();
                    closeness = Closeness(value.split('/').map(tier).collect());
                }
                "load_max" => settings.load_max = float(),
                "latency_max" => settings.latency_max = float(),
                "failed_max" => settings.failed_max = float(),
                "overprovision" => settings.overprovision = float(),
                "panic_below" => settings.panic_below = float(),
                "ejected_max" => settings.ejected_max = float(),
                "n_unreachable_max" => settings.n_unreachable_max = count(),
                "n_failed_max" => settings.n_failed_max = count(),
                "trip_for" => settings.trip_for = seconds(),
                "trip_max" => settings.trip_max = seconds(),
                "warm_up" => settings.warm_up = seconds(),
                "check" => settings.check = Some(HealthCheck::of(value.to_owned())),
                zone if zone.len() == 1 => {}
                other => panic!("there is no setting {other:?}"),
            }
        }
        let mut fleet = Fleet::new(self.now, settings, closeness, 1);
        fleet.set_servers(self.now, specs(words));
        self.fleet = Some(fleet);
        self.held.clear();
        self.slow.clear();
    }

    /// Who got the attempts, by zone.
    fn tally(&self, attempts: &[Attempt]) -> String {
        let fleet = self.fleet.as_ref().unwrap();
        let mut zones: BTreeMap<&str, BTreeMap<u16, u64>> = BTreeMap::new();
        for attempt in attempts {
            let server = fleet.servers().find(|server| server.spec.address == attempt.address);
            let zone = server.map_or("?", |server| &server.spec.zone);
            *zones.entry(zone).or_default().entry(attempt.address.port()).or_default() += 1;
        }
        let zone = |(name, servers): (&str, BTreeMap<u16, u64>)| {
            let all: u64 = servers.values().sum();
            let each: Vec<String> =
                servers.iter().map(|(server, n)| format!("{server}: {n}")).collect();
            format!("{name} {all} ({})", each.join(", "))
        };
        let zones: Vec<String> = zones.into_iter().map(zone).collect();
        if zones.is_empty() { "nobody\n".into() } else { zones.join("  ") + "\n" }
    }

    fn send(&mut self, n: u64, ms: u64) -> String {
        let mut attempts = Vec::new();
        for _ in 0..n {
            let now = self.now;
            let Some(attempt) = self.fleet().pick(now, &[]) else { continue };
            let ms = self.slow.get(&attempt.address.port()).copied().unwrap_or(ms);
            self.now += Duration::from_millis(1);
            let now = self.now;
            self.fleet().report(now, attempt, Ended::Well(Duration::from_millis(ms)));
            self.fleet().release(attempt);
            attempts.push(attempt);
        }
        self.tally(&attempts)
    }

    fn hold(&mut self, n: u64) -> String {
        let now = self.now;
        let attempts: Vec<Attempt> = (0..n).filter_map(|_| self.fleet().pick(now, &[])).collect();
        self.held.extend(&attempts);
        self.tally(&attempts)
    }

    fn answer(&mut self, ms: u64) {
        let now = self.now;
        for attempt in std::mem::take(&mut self.held) {
            let ms = self.slow.get(&attempt.address.port()).copied().unwrap_or(ms);
            self.fleet().report(now, attempt, Ended::Well(Duration::from_millis(ms)));
            self.fleet().release(attempt);
        }
    }

    /// Attempts at one server, whoever would have been picked.
    fn fail(&mut self, server: u16, n: u64, kind: &str) {
        let ended = match kind {
            "unreachable" => Ended::Unreachable,
            "broken" => Ended::Broken,
            "500" => Ended::Failed,
            "time-out" => Ended::TimedOut(Duration::from_secs(1)),
            other => panic!("there is no failure {other:?}"),
        };
        let now = self.now;
        let mut failed = 0;
        for _ in 0..10_000 {
            let Some(attempt) = self.fleet().pick(now, &[]) else { break };
            if attempt.address.port() == server {
                self.fleet().report(now, attempt, ended);
                self.fleet().release(attempt);
                failed += 1;
            } else {
                self.fleet().give_up(attempt, Duration::ZERO);
            }
            if failed == n {
                break;
            }
        }
    }

    fn wait(&mut self, seconds: f64) -> String {
        let mut out = String::new();
        for _ in 0..(seconds * 10.0).round() as u64 {
            self.now += Duration::from_millis(100);
            let now = self.now;
            self.fleet().step(now);
            out.push_str(&self.events());
        }
        out
    }

    fn events(&mut self) -> String {
        let mut out = String::new();
        for event in self.fleet().take_events() {
            match event {
                Event::Out { address, reason, .. } => {
                    writeln!(out, "server {} is out: {}", address.port(), reason.name()).unwrap();
                }
                Event::Back { address, .. } => {
                    writeln!(out, "server {} is back", address.port()).unwrap();
                }
                Event::Left { zone } => writeln!(out, "zone {zone} is left").unwrap(),
                Event::Returned { zone } => writeln!(out, "zone {zone} is returned to").unwrap(),
                Event::Panic => writeln!(out, "panic").unwrap(),
                Event::Calm => writeln!(out, "calm").unwrap(),
            }
        }
        out
    }

    /// Checks of one server, how they went; all others are well after a millisecond.
    fn probe(&mut self, server: u16, well: Option<Duration>) -> String {
        let now = self.now;
        for check in self.fleet().checks_due(now) {
            let is_meant = check.attempt.address.port() == server;
            let well = if is_meant { well } else { Some(Duration::from_millis(1)) };
            self.fleet().checked(now, &check, well);
        }
        self.events()
    }

    fn show(&mut self) -> String {
        let mut out = self.events();
        let fleet = self.fleet.as_ref().unwrap();
        for zone in fleet.zones() {
            let load = zone.load().map_or("none".into(), |load| format!("{load:.1}"));
            writeln!(
                out,
                "zone {}: share {:.2}, load {load}, {} open",
                zone.name,
                zone.share,
                zone.open.len()
            )
            .unwrap();
        }
        for server in fleet.servers() {
            if let Some(reason) = server.health.out() {
                writeln!(out, "server {}: {}", server.spec.address.port(), reason.name()).unwrap();
            }
        }
        out
    }

    /// Requests a tenth of a second apart.
    fn ask(&mut self, n: u64, how: &str) -> String {
        let breaker = self.breaker.as_mut().unwrap();
        let (mut n_admitted, mut wait) = (0, None);
        for _ in 0..n {
            self.now += Duration::from_millis(100);
            match breaker.admit(self.now) {
                Ok(pass) => {
                    n_admitted += 1;
                    let ended = match how {
                        "ok" => breaker::Ended::Well(Duration::from_millis(1)),
                        "slow" => breaker::Ended::Well(Duration::from_secs(5)),
                        "failed" => breaker::Ended::Failed,
                        "unknown" => breaker::Ended::Unknown,
                        other => panic!("there is no end {other:?}"),
                    };
                    breaker.report(self.now, pass, ended);
                }
                Err(left) => wait = Some(left),
            }
        }
        let wait = wait.map_or(String::new(), |wait| format!(", try again in {wait:?}"));
        format!("{n_admitted} let through, {:?}{wait}\n", breaker.state())
    }

    /// For some seconds, `n` requests are always under way, each taking so many milliseconds.
    fn load(&mut self, seconds: u64, n: u64, ms: u64) -> String {
        let bulkhead = self.bulkhead.as_mut().unwrap();
        let latency = Duration::from_millis(ms);
        for _ in 0..seconds * 1000 / ms.max(1) {
            let n_in = (0..n).filter(|_| bulkhead.admit(Priority::Critical)).count();
            self.now += latency;
            for _ in 0..n_in {
                bulkhead.answered(self.now, 0, latency);
                bulkhead.release();
            }
        }
        format!("limit {}\n", bulkhead.limit())
    }
}

/// `a=1,2 b=3`: zones of one letter, servers by their port.
fn specs(words: &[&str]) -> Vec<ServerSpec> {
    let zones = words.iter().filter_map(|word| word.split_once('='));
    let zones = zones.filter(|(zone, _)| zone.len() == 1);
    zones
        .flat_map(|(zone, servers)| {
            servers.split(',').map(|server| ServerSpec {
                address: ([10, 0, 0, 1], server.parse().unwrap()).into(),
                zone: zone.to_owned(),
                weight: 1.0,
            })
        })
        .collect()
}

fn breaker_settings(words: &[&str]) -> breaker::Settings {
    let mut settings = breaker::Settings::default();
    for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
        let seconds = || Duration::from_secs_f64(value.parse().unwrap());
        match name {
            "window" => settings.window = seconds(),
            "requests_min" => settings.n_requests_min = value.parse().unwrap(),
            "failed_max" => settings.failed_max = value.parse().unwrap(),
            "slow_after" => settings.slow_after = Some(seconds()),
            "slow_max" => settings.slow_max = value.parse().unwrap(),
            "open_for" => settings.open_for = seconds(),
            "open_max" => settings.open_max = seconds(),
            "trials" => settings.n_trials = value.parse().unwrap(),
            other => panic!("there is no setting {other:?}"),
        }
    }
    settings
}

fn budget_settings(words: &[&str]) -> budget::Settings {
    let mut settings = budget::Settings::default();
    for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
        match name {
            "share" => settings.share = value.parse().unwrap(),
            "floor" => settings.floor_per_s = value.parse().unwrap(),
            other => panic!("there is no setting {other:?}"),
        }
    }
    settings
}

fn bulkhead_settings(words: &[&str]) -> bulkhead::Settings {
    let mut settings = bulkhead::Settings::default();
    for (name, value) in words.iter().filter_map(|word| word.split_once('=')) {
        match name {
            "min" => settings.limit_min = value.parse().unwrap(),
            "max" => settings.limit_max = value.parse().unwrap(),
            "tolerance" => settings.tolerance = value.parse().unwrap(),
            other => panic!("there is no setting {other:?}"),
        }
    }
    settings
}
