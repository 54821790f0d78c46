//! The servers of one service: picks one for each request, and learns from how it ends.
//!
//! An [`Attempt`] is one request at one server. Its life begins with `pick`. It is either reported
//! (an answer's headers, a failure) and later released (the last byte), or given up.

use super::health::Reason;
use super::server::{Server, is_better};
use super::settings::{Closeness, HealthCheck, ServerSpec, Settings};
use super::subset::subset;
use super::zone::Zone;
use crate::isolate::window::Counts;
use base::env::Instant;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

/// How often shares, weights and who is hot are worked out anew.
pub const STEP: Duration = Duration::from_millis(100);
/// How often an unreachable server is probed.
const PROBE_EVERY: Duration = Duration::from_secs(1);
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// How long a server that is suspected of saying nothing has to say something, before it is out and
/// then; and how often it is asked.
const SIGN_TIMEOUT: Duration = Duration::from_millis(200);
const SIGN_TIMEOUT_OUT: Duration = Duration::from_secs(1);
const ASK_EVERY: Duration = Duration::from_millis(250);
/// Draws before a candidate is taken whatever its share.
const N_DRAWS_MAX: usize = 16;
/// How often outliers are looked for.
const OUTLIERS_EVERY: Duration = Duration::from_secs(1);
/// Fewer servers have no median worth the name.
const N_PEERS_MIN: usize = 3;

/// One request at one server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attempt {
    pub address: SocketAddr,
    server: u32,
    life: u64,
    /// Its number among those of its server.
    nth: u64,
}

impl Attempt {
    /// The server's place in the fleet: small numbers, used again when a server has gone.
    pub fn place(&self) -> usize {
        self.server as usize
    }
}

/// How an attempt ended, as far as the server is concerned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// With an answer, after so long.
    Well(Duration),
    /// With an answer whose time says nothing: its request was still on its way.
    Streamed,
    /// With an answer that says that the server failed.
    Failed,
    /// With an answer that says that its caller gave it too little time: it is alive.
    Late,
    /// No connection.
    Unreachable,
    /// No answer within the time it had.
    TimedOut(Duration),
    /// The connection broke in the middle.
    Broken,
}

/// A look at one server that the shell should take, and report with [`Fleet::checked`].
#[derive(Clone, Debug, PartialEq)]
pub struct Check {
    pub attempt: Attempt,
    pub kind: CheckKind,
    pub timeout: Duration,
}

#[derive(Clone, Debug, PartialEq)]
pub enum CheckKind {
    Connect,
    Ask(Box<HealthCheck>),
    /// Any word from it will do: it owes answers and says nothing.
    Sign,
}

/// What a person on call wants to read.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    Out {
        address: SocketAddr,
        zone: String,
        reason: Reason,
    },
    Back {
        address: SocketAddr,
        zone: String,
    },
    /// The zone's share fell below a half, or rose above it.
    Left {
        zone: String,
    },
    Returned {
        zone: String,
    },
    /// Most servers look bad; all get requests.
    Panic,
    Calm,
}

#[derive(Debug)]
pub struct Fleet {
    settings: Settings,
    closeness: Closeness,
    gateway: u64,
    rng: SmallRng,
    slots: Vec<Slot>,
    zones: Vec<Zone>,
    /// The zones' places, the closest first; tiers in between are seen from `Zone::tier`.
    order: Vec<usize>,
    stepped_at: Instant,
    outliers_at: Instant,
    is_panicking: bool,
    events: Vec<Event>,
}

/// A server's place. `life` tells an attempt at the place's former server from one at this.
#[derive(Debug)]
struct Slot {
    life: u64,
    server: Option<Server>,
}

impl Fleet {
    /// `seed` makes the choices repeatable, and is this gateway's number among others.
    pub fn new(now: Instant, settings: Settings, closeness: Closeness, seed: u64) -> Fleet {
        Fleet {
            settings,
            closeness,
            gateway: seed,
            rng: SmallRng::seed_from_u64(seed),
            slots: Vec::new(),
            zones: Vec::new(),
            order: Vec::new(),
            stepped_at: now,
            outliers_at: now,
            is_panicking: false,
            events: Vec::new(),
        }
    }

    /// The rules change; what is known of the servers stays.
    pub fn set(&mut self, now: Instant, settings: Settings, closeness: Closeness) {
        self.settings = settings;
        self.closeness = closeness;
        for zone in &mut self.zones {
            zone.tier = self.closeness.tier(&zone.name);
        }
        if self.settings.check.is_none() {
            self.slots
                .iter_mut()
                .filter_map(|slot| slot.server.as_mut())
                .for_each(Server::forget_looks);
            // Nobody looks any more, so nobody would bring them back.
            for place in self.places(|server| server.health.out() == Some(Reason::Check)) {
                self.bring_back(now, place);
            }
        }
        self.refresh(now);
    }

    /// These are the servers now. Who is known keeps what is known of it; who is no longer named
    /// gets no more requests.
    pub fn set_servers(&mut self, now: Instant, specs: Vec<ServerSpec>) {
        let is_first = self.slots.is_empty();
        let specs = self.chosen(specs);
        for idx in 0..self.slots.len() {
            let Some(server) = &self.slots[idx].server else { continue };
            let spec = specs.iter().find(|spec| spec.address == server.spec.address).cloned();
            let zone = spec.as_ref().map(|spec| self.zone_of(now, &spec.zone));
            let Some(server) = &mut self.slots[idx].server else { continue };
            server.leaving = spec.is_none();
            let (Some(spec), Some(zone)) = (spec, zone) else { continue };
            // It is the same server wherever it stands, and takes along what is under way.
            let (n_in_flight, n_owed) = (server.n_in_flight, server.n_owed());
            let before = std::mem::replace(&mut server.zone, zone);
            server.spec = spec;
            if before != zone {
                let old = &mut self.zones[before];
                old.n_in_flight = old.n_in_flight.saturating_sub(n_in_flight);
                old.n_waiting = old.n_waiting.saturating_sub(n_owed);
                let new = &mut self.zones[zone];
                new.n_in_flight += n_in_flight;
                new.n_waiting += n_owed;
            }
        }
        for spec in specs {
            let is_known = |slot: &Slot| {
                let server = slot.server.as_ref();
                server.is_some_and(|server| server.spec.address == spec.address && !server.leaving)
            };
            if self.slots.iter().any(is_known) {
                continue;
            }
            let zone = self.zone_of(now, &spec.zone);
            // At the very first there is nobody else to carry the load meanwhile.
            let server = Server::new(now, spec, zone, is_first);
            match self.slots.iter_mut().find(|slot| slot.server.is_none()) {
                Some(slot) => {
                    slot.life += 1;
                    slot.server = Some(server);
                }
                None => self.slots.push(Slot { life: 0, server: Some(server) }),
            }
        }
        self.drop_gone();
        self.refresh(now);
    }

    fn chosen(&self, specs: Vec<ServerSpec>) -> Vec<ServerSpec> {
        let Some(n) = self.settings.subset else { return specs };
        let mut by_zone: BTreeMap<String, Vec<ServerSpec>> = BTreeMap::new();
        for spec in specs {
            by_zone.entry(spec.zone.clone()).or_default().push(spec);
        }
        by_zone.into_values().flat_map(|zone| subset(self.gateway, zone, n)).collect()
    }

    fn zone_of(&mut self, now: Instant, name: &str) -> usize {
        if let Some(known) = self.zones.iter().position(|zone| zone.name == name) {
            return known;
        }
        self.zones.push(Zone::new(now, name.to_owned(), self.closeness.tier(name)));
        self.zones.len() - 1
    }

    fn drop_gone(&mut self) {
        for slot in &mut self.slots {
            if slot.server.as_ref().is_some_and(|server| server.leaving && server.n_in_flight == 0)
            {
                slot.server = None;
            }
        }
    }

    /// The server for one attempt; none when the service has none at all. Those in `tried` get it
    /// only when there is no other.
    pub fn pick(&mut self, now: Instant, tried: &[Attempt]) -> Option<Attempt> {
        self.pick_for(now, tried, true)
    }

    /// As [`Fleet::pick`]. What cannot be sent twice does not go to a server on trial while there
    /// are others.
    pub fn pick_for(
        &mut self,
        now: Instant,
        tried: &[Attempt],
        may_repeat: bool,
    ) -> Option<Attempt> {
        if now.saturating_duration_since(self.stepped_at) >= STEP {
            self.step(now);
        }
        let first = match self.elsewhere(tried) {
            Some(zone) => Some(zone),
            None => self.draw_zone(),
        };
        let zone = match first {
            Some(zone) if self.has_untried(zone, tried) => Some(zone),
            _ => self.order.iter().copied().find(|zone| self.has_untried(*zone, tried)),
        };
        let (zone, tried) = match (zone, first) {
            (Some(zone), _) => (zone, tried),
            (None, Some(zone)) => (zone, &[][..]),
            (None, None) => return None,
        };
        let place = self.choose(now, zone, tried, may_repeat)?;
        let slot = &mut self.slots[place as usize];
        let server = slot.server.as_mut()?;
        let nth = server.begin(now);
        let zone = &mut self.zones[server.zone];
        zone.n_in_flight += 1;
        zone.n_waiting += 1;
        Some(Attempt { address: server.spec.address, server: place, life: slot.life, nth })
    }

    /// Zones fail as one: what failed in one is tried in the next closest, in one of them where
    /// several are equally close.
    fn elsewhere(&mut self, tried: &[Attempt]) -> Option<usize> {
        let zone_of = |attempt: &Attempt| self.server(attempt.server).map(|server| server.zone);
        let failed: Vec<usize> = tried.iter().filter_map(zone_of).collect();
        let is_other = |zone: &usize| !failed.contains(zone) && !self.zones[*zone].open.is_empty();
        let others = || self.order.iter().copied().filter(is_other);
        let tier =
            others().next().filter(|_| !failed.is_empty()).map(|zone| self.zones[zone].tier)?;
        let equal: Vec<usize> = others().filter(|zone| self.zones[*zone].tier == tier).collect();
        let draw = self.rng.random::<f64>();
        let all: f64 = equal.iter().map(|zone| self.zones[*zone].ability()).sum();
        weighted(&equal, draw * all, |zone| self.zones[zone].ability())
    }

    /// Offers the request to the tiers in their order; what none takes is shared by all.
    fn draw_zone(&mut self) -> Option<usize> {
        let is_open = |zone: &usize| !self.zones[*zone].open.is_empty();
        // The usual case: the closest zone is alone in its tier and well.
        let &closest = self.order.first()?;
        let alone =
            self.order.get(1).is_none_or(|next| self.zones[*next].tier != self.zones[closest].tier);
        let zone = &self.zones[closest];
        let is_whole = zone.open_weight * self.settings.overprovision >= zone.all_weight;
        if alone && is_open(&closest) && is_whole && zone.share >= 1.0 && zone.has_room() {
            return Some(closest);
        }
        let mut begin = 0;
        while begin < self.order.len() {
            let tier = self.zones[self.order[begin]].tier;
            let n = self.order[begin..]
                .iter()
                .take_while(|zone| self.zones[**zone].tier == tier)
                .count();
            let zones = &self.order[begin..begin + n];
            begin += n;
            let sum = |value: fn(&Zone) -> f64| -> f64 {
                zones.iter().map(|zone| value(&self.zones[*zone])).sum()
            };
            let open = sum(|zone| zone.open_weight);
            if open <= 0.0 {
                continue;
            }
            let by_capacity = self.settings.overprovision * open / sum(|zone| zone.all_weight);
            // What one zone of the tier does not take the other one can, while it has room.
            let shares = zones.iter().map(|zone| &self.zones[*zone]);
            let shares = shares.filter(|zone| zone.has_room() && !zone.open.is_empty());
            let best = shares.map(|zone| zone.share).fold(0.0, f64::max);
            if self.rng.random::<f64>() < by_capacity.min(1.0) * best {
                let at = self.rng.random::<f64>() * sum(willing);
                return weighted(zones, at, |zone| willing(&self.zones[zone]));
            }
        }
        // Everybody has enough: what is left is spread by what the zones can do, and not by their
        // shares, whose differences it would make larger.
        let all: f64 = self.zones.iter().map(Zone::ability).sum();
        let at = self.rng.random::<f64>() * all;
        weighted(&self.order, at, |zone| self.zones[zone].ability())
    }

    fn has_untried(&self, zone: usize, tried: &[Attempt]) -> bool {
        let open = &self.zones[zone].open;
        open.iter().any(|place| tried.iter().all(|attempt| attempt.server != *place))
    }

    /// The better of two servers of the zone, drawn by their shares.
    fn choose(
        &mut self,
        now: Instant,
        zone: usize,
        tried: &[Attempt],
        may_repeat: bool,
    ) -> Option<u32> {
        let is_safe = |place: &u32| {
            may_repeat || self.server(*place).is_some_and(|server| !server.is_on_trial)
        };
        let has_safe = self.zones[zone].open.iter().any(is_safe);
        let may_repeat = may_repeat || !has_safe;
        let one = self.draw(zone, tried, None, may_repeat)?;
        let other = self.draw(zone, tried, Some(one), may_repeat);
        let Some(other) = other else { return Some(one) };
        let server = |place: u32| self.slots.get(place as usize)?.server.as_ref();
        let (first, second) = (server(one)?, server(other)?);
        let is_first = is_better(now, first, second, self.zones[zone].hot_above);
        Some(if is_first { one } else { other })
    }

    fn draw(
        &mut self,
        zone: usize,
        tried: &[Attempt],
        not: Option<u32>,
        may_repeat: bool,
    ) -> Option<u32> {
        let open = &self.zones[zone].open;
        let slots = &self.slots;
        let is_on_trial = |place: u32| {
            slots[place as usize].server.as_ref().is_some_and(|server| server.is_on_trial)
        };
        let is_free = |place: u32| {
            not != Some(place)
                && tried.iter().all(|attempt| attempt.server != place)
                && (may_repeat || !is_on_trial(place))
        };
        if open.len() == 1 {
            return open.first().copied().filter(|place| is_free(*place));
        }
        for _ in 0..N_DRAWS_MAX {
            let place = open[self.rng.random_range(0..open.len())];
            let share =
                self.slots[place as usize].server.as_ref().map_or(0.0, |server| server.draw);
            if is_free(place) && (share >= 1.0 || self.rng.random::<f64>() < share) {
                return Some(place);
            }
        }
        open.iter().copied().find(|place| is_free(*place))
    }

    /// What became of an attempt. It stays in flight until [`Fleet::release`].
    pub fn report(&mut self, now: Instant, attempt: Attempt, ended: Ended) {
        let Some((server, zone)) = self.at(attempt) else { return };
        let n_owed = server.n_owed();
        match ended {
            Ended::Well(_) | Ended::Streamed | Ended::Failed | Ended::Late => {
                server.heard(now, attempt.nth);
            }
            Ended::Unreachable | Ended::TimedOut(_) | Ended::Broken => server.forget(attempt.nth),
        }
        zone.n_waiting = zone.n_waiting.saturating_sub(n_owed - server.n_owed());
        if server.health.out() == Some(Reason::Silent) && server.spoke_at == now {
            self.bring_back(now, attempt.server);
        }
        let Some((server, zone)) = self.at(attempt) else { return };
        if ended == Ended::Late {
            return;
        }
        // A server that fails quickly is not quick.
        if let Ended::Well(latency) | Ended::TimedOut(latency) = ended {
            server.answered(now, latency);
            zone.answered(now, latency);
        }
        let is_failure = !matches!(ended, Ended::Well(_) | Ended::Streamed);
        let counts = Counts { n_all: 1, n_failed: u32::from(is_failure), n_slow: 0 };
        server.window.add(now, counts);
        zone.window.add(now, counts);
        if !is_failure {
            server.health.answered_well();
            server.is_on_trial = false;
            return;
        }
        server.n_failed += 1;
        if server.health.out().is_none()
            && let Some(reason) = self.failed(attempt.server, ended == Ended::Unreachable)
        {
            self.take_out(now, attempt.server, reason);
        }
    }

    /// Latencies are told on another scale from now on: what is known is multiplied.
    pub fn rescale(&mut self, factor: f64) {
        self.zones.iter_mut().for_each(|zone| zone.rescale(factor));
        let servers = self.slots.iter_mut().filter_map(|slot| slot.server.as_mut());
        servers.for_each(|server| server.rescale(factor));
    }

    fn failed(&mut self, place: u32, is_unreachable: bool) -> Option<Reason> {
        let server = self.slots.get_mut(place as usize)?.server.as_mut()?;
        server.health.failed(&self.settings, is_unreachable)
    }

    /// How the rest of an answer went that began well, and was reported so.
    pub fn rest(&mut self, now: Instant, attempt: Attempt, is_well: bool) {
        let Some((server, zone)) = self.at(attempt) else { return };
        if !is_well {
            let counts = Counts { n_failed: 1, ..Counts::default() };
            server.window.add(now, counts);
            zone.window.add(now, counts);
            server.n_failed += 1;
        }
        let is_in = server.health.out().is_none();
        if let Some(reason) = self.rest_of(attempt.server, is_well).filter(|_| is_in) {
            self.take_out(now, attempt.server, reason);
        }
    }

    fn rest_of(&mut self, place: u32, is_well: bool) -> Option<Reason> {
        let server = self.slots.get_mut(place as usize)?.server.as_mut()?;
        server.health.rest(&self.settings, is_well)
    }

    /// A reported attempt is over.
    pub fn release(&mut self, attempt: Attempt) {
        let Some((server, zone)) = self.at(attempt) else { return };
        server.release();
        zone.n_in_flight = zone.n_in_flight.saturating_sub(1);
        if server.leaving {
            self.drop_gone();
        }
    }

    /// Nobody waits for the attempt any more, after so long; it was not reported.
    pub fn give_up(&mut self, attempt: Attempt, waited: Duration) {
        let Some((server, zone)) = self.at(attempt) else { return };
        server.gave_up(waited);
        let n_owed = server.n_owed();
        server.forget(attempt.nth);
        zone.n_waiting = zone.n_waiting.saturating_sub(n_owed - server.n_owed());
        self.release(attempt);
    }

    /// Whether another attempt should stand beside this one, which has waited for a while: its
    /// server says nothing, or is on trial.
    pub fn is_doubtful(&self, attempt: Attempt) -> bool {
        let slot = self.slots.get(attempt.server as usize);
        let server = slot.filter(|slot| slot.life == attempt.life);
        server
            .and_then(|slot| slot.server.as_ref())
            .is_none_or(|server| server.is_on_trial || server.health.is_fact())
    }

    /// The attempt's server and its zone, unless another server has its place by now.
    fn at(&mut self, attempt: Attempt) -> Option<(&mut Server, &mut Zone)> {
        let slot = self.slots.get_mut(attempt.server as usize)?;
        let server = slot.server.as_mut().filter(|_| slot.life == attempt.life)?;
        let zone = &mut self.zones[server.zone];
        Some((server, zone))
    }

    fn take_out(&mut self, now: Instant, place: u32, reason: Reason) {
        let Some(zone) = self.server(place).map(|server| server.zone) else { return };
        if matches!(reason, Reason::Failing | Reason::Outlier) {
            let of_zone = || self.servers().filter(|server| server.zone == zone);
            let is_ejected = |server: &&Server| {
                matches!(server.health.out(), Some(Reason::Failing | Reason::Outlier))
            };
            let n_after = of_zone().filter(is_ejected).count() + 1;
            if n_after as f64 > of_zone().count() as f64 * self.settings.ejected_max {
                return;
            }
        }
        let Some(server) = self.slots[place as usize].server.as_mut() else { return };
        server.health.take_out(now, &self.settings, reason);
        let (address, zone) = (server.spec.address, server.spec.zone.clone());
        self.note(Event::Out { address, zone, reason });
        self.refresh(now);
    }

    fn bring_back(&mut self, now: Instant, place: u32) {
        let Some(server) = self.slots[place as usize].server.as_mut() else { return };
        server.health.bring_back(now, &self.settings);
        server.warm_up(now);
        let (address, zone) = (server.spec.address, server.spec.zone.clone());
        self.note(Event::Back { address, zone });
        self.refresh(now);
    }

    /// Brings back who was ejected for how it looked.
    pub fn forgive(&mut self, now: Instant) {
        let ejected = self.places(|server| {
            matches!(server.health.out(), Some(Reason::Failing | Reason::Outlier))
        });
        for place in ejected {
            self.bring_back(now, place);
        }
    }

    /// The looks at servers that are due. Each is reported once.
    pub fn checks_due(&mut self, now: Instant) -> Vec<Check> {
        let settings = &self.settings;
        let mut due = Vec::new();
        for (place, slot) in self.slots.iter_mut().enumerate() {
            let Some(server) = slot.server.as_mut().filter(|server| !server.leaving) else {
                continue;
            };
            let idle = now.saturating_duration_since(server.answered_at);
            let is_silent = server.health.out() == Some(Reason::Silent);
            let is_suspect = server.health.out().is_none() && server.is_suspect(now);
            let attempt = Attempt {
                address: server.spec.address,
                server: u32::try_from(place).unwrap_or(u32::MAX),
                life: slot.life,
                nth: 0,
            };
            let health = &mut server.health;
            if (is_silent || is_suspect) && health.asked_at.is_none() && now >= health.ask_at {
                health.asked_at = Some(now);
                let timeout = if is_silent { SIGN_TIMEOUT_OUT } else { SIGN_TIMEOUT };
                due.push(Check { attempt, kind: CheckKind::Sign, timeout });
            }
            if is_silent {
                continue;
            }
            if health.is_checking || now < health.check_at {
                continue;
            }
            let is_unreachable = health.out() == Some(Reason::Unreachable);
            let (kind, timeout) = match &settings.check {
                _ if is_unreachable => (CheckKind::Connect, PROBE_TIMEOUT),
                Some(check) => (CheckKind::Ask(Box::new(check.clone())), check.timeout),
                None if idle >= settings.idle_probe_after => (CheckKind::Connect, PROBE_TIMEOUT),
                None => continue,
            };
            health.is_checking = true;
            health.check_at = now
                + match &settings.check {
                    Some(check) if !is_unreachable => check.interval,
                    _ => PROBE_EVERY.max(if is_unreachable {
                        PROBE_EVERY
                    } else {
                        settings.idle_probe_after
                    }),
                };
            due.push(Check { attempt, kind, timeout });
        }
        due
    }

    /// A look at a server that could not be taken, for want of something here.
    pub fn not_looked(&mut self, check: &Check) {
        let Some(slot) = self.slots.get_mut(check.attempt.place()) else { return };
        let server = slot.server.as_mut().filter(|_| slot.life == check.attempt.life);
        let Some(server) = server else { return };
        match check.kind {
            CheckKind::Sign => server.health.asked_at = None,
            CheckKind::Connect | CheckKind::Ask(_) => server.health.is_checking = false,
        }
    }

    /// Nobody let us in where a sign was asked for: that is another fact than silence.
    pub fn not_reached(&mut self, now: Instant, check: &Check) {
        self.not_looked(check);
        let place = check.attempt.server;
        let Some(slot) = self.slots.get_mut(place as usize) else { return };
        let server = slot.server.as_mut().filter(|_| slot.life == check.attempt.life);
        let Some(server) = server else { return };
        server.health.ask_at = now + ASK_EVERY;
        if server.health.out().is_none() && server.health.failed(&self.settings, true).is_some() {
            self.take_out(now, place, Reason::Unreachable);
        }
    }

    /// Whether a server that was asked for a sign gave one, or said something meanwhile.
    fn signed(&mut self, now: Instant, place: u32, is_well: bool) {
        let Some(slot) = self.slots.get_mut(place as usize) else { return };
        let Some(server) = slot.server.as_mut() else { return };
        let asked_at = server.health.asked_at.take().unwrap_or(now);
        let is_out = server.health.out() == Some(Reason::Silent);
        server.health.ask_at = now + if is_out { PROBE_EVERY } else { ASK_EVERY };
        if is_well {
            let n_owed = server.n_owed();
            server.heard_all(now);
            let zone = &mut self.zones[server.zone];
            zone.n_waiting = zone.n_waiting.saturating_sub(n_owed);
            if is_out {
                self.bring_back(now, place);
            }
        } else if server.health.out().is_none() && server.spoke_at < asked_at {
            self.take_out(now, place, Reason::Silent);
        }
    }

    /// What a look at a server showed: that it is well, and after how long; none: it is not.
    pub fn checked(&mut self, now: Instant, check: &Check, well: Option<Duration>) {
        let is_well = well.is_some();
        let place = check.attempt.server;
        let Some(slot) = self.slots.get_mut(place as usize) else { return };
        let Some(server) = slot.server.as_mut().filter(|_| slot.life == check.attempt.life) else {
            return;
        };
        if check.kind == CheckKind::Sign {
            return self.signed(now, place, is_well);
        }
        let health = &mut server.health;
        health.is_checking = false;
        if check.kind == CheckKind::Connect {
            let out = health.out();
            health.is_probed |= !is_well;
            if is_well && out == Some(Reason::Unreachable) {
                self.bring_back(now, place);
            } else if !is_well && out.is_none() && health.failed(&self.settings, true).is_some() {
                self.take_out(now, place, Reason::Unreachable);
            } else if !is_well && out.is_none() {
                // Look again soon: one failed connection is not yet a fact.
                health.check_at = now + PROBE_EVERY;
            }
            return;
        }
        if let Some(took) = well {
            server.looked(took);
        }
        let (n_well, n_unwell) =
            self.settings.check.as_ref().map_or((1, 1), |check| (check.n_well, check.n_unwell));
        match server.health.checked(n_well, n_unwell, is_well) {
            Some(true) => self.bring_back(now, place),
            Some(false) => self.take_out(now, place, Reason::Check),
            None => {}
        }
    }

    /// Time passes: shares move, servers come back, outliers are looked for.
    pub fn step(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.stepped_at);
        self.stepped_at = now;
        let latencies: Vec<Option<f64>> =
            self.zones.iter().map(|zone| zone.latency_s(now)).collect();
        let best_s = self.zones.iter().filter_map(Zone::base_s).min_by(f64::total_cmp);
        for idx in 0..self.zones.len() {
            let others = latencies.iter().enumerate().filter(|(other, _)| *other != idx);
            let other_s = others.filter_map(|(_, latency)| *latency).min_by(f64::total_cmp);
            let zone = &mut self.zones[idx];
            let before = zone.share;
            zone.step(now, passed, &self.settings, other_s, best_s);
            let name = || zone.name.clone();
            if before >= 0.5 && zone.share < 0.5 {
                let event = Event::Left { zone: name() };
                self.note(event);
            } else if before < 0.5 && zone.share >= 0.5 {
                let event = Event::Returned { zone: name() };
                self.note(event);
            }
        }
        let over: Vec<u32> = self.places(|server| server.health.is_over(now));
        for place in over {
            self.bring_back(now, place);
        }
        if now.saturating_duration_since(self.outliers_at) >= OUTLIERS_EVERY {
            self.outliers_at = now;
            self.eject_outliers(now);
        }
        self.refresh(now);
    }

    fn eject_outliers(&mut self, now: Instant) {
        for zone in 0..self.zones.len() {
            let n_min = self.settings.n_requests_min;
            let mut failed: Vec<(u32, f64)> = Vec::new();
            for (place, slot) in self.slots.iter_mut().enumerate() {
                let Some(server) = slot.server.as_mut().filter(|server| server.zone == zone) else {
                    continue;
                };
                let counts = server.window.sum(now);
                if counts.n_all >= n_min && server.health.out().is_none() {
                    failed.push((u32::try_from(place).unwrap_or(u32::MAX), counts.failed()));
                }
            }
            if failed.len() < N_PEERS_MIN {
                continue;
            }
            failed.sort_by(|one, other| one.1.total_cmp(&other.1));
            let median = failed[failed.len() / 2].1;
            let margin = self.settings.outlier_margin;
            let far: Vec<u32> = failed
                .iter()
                .filter(|(_, share)| *share > median + margin)
                .map(|(place, _)| *place)
                .collect();
            for place in far {
                self.take_out(now, place, Reason::Outlier);
            }
        }
    }

    /// Works out who is open, and how likely each is drawn.
    fn refresh(&mut self, now: Instant) {
        self.order = (0..self.zones.len()).collect();
        self.order.sort_by_key(|zone| self.zones[*zone].tier);
        let n_reachable = self.count(|server| !server.health.is_fact());
        let n_well = self.count(|server| server.health.out().is_none());
        let is_panicking = n_well < n_reachable
            && (n_well as f64) < self.settings.panic_below * n_reachable as f64;
        if is_panicking != self.is_panicking {
            self.is_panicking = is_panicking;
            self.note(if is_panicking { Event::Panic } else { Event::Calm });
        }
        // With nobody reachable the best that can be done is to try.
        let is_open = |server: &Server| match server.health.out() {
            _ if server.leaving => false,
            None => true,
            Some(Reason::Unreachable | Reason::Silent) => n_reachable == 0,
            Some(_) => is_panicking,
        };
        for idx in 0..self.zones.len() {
            let open = || self.servers().filter(|server| server.zone == idx && is_open(server));
            let typical_s = median(open().filter_map(|server| server.latency_s(now)));
            let typical_look_s = median(open().filter_map(Server::look_s));
            let base_s = self.zones[idx].base_s();
            let mut open = std::mem::take(&mut self.zones[idx].open);
            open.clear();
            let (mut open_weight, mut all_weight, mut draw_max) = (0.0, 0.0, 0.0_f64);
            let mut loads = Vec::new();
            for (place, slot) in self.slots.iter_mut().enumerate() {
                let Some(server) = slot.server.as_mut() else { continue };
                if server.zone != idx || server.leaving {
                    continue;
                }
                all_weight += server.spec.weight;
                if !is_open(server) {
                    continue;
                }
                server.draw = server.share(now, &self.settings, typical_s, typical_look_s, base_s);
                draw_max = draw_max.max(server.draw);
                open_weight += server.draw.max(0.5 * server.spec.weight).min(server.spec.weight);
                loads.push(f64::from(server.n_in_flight) / server.spec.weight);
                open.push(u32::try_from(place).unwrap_or(u32::MAX));
            }
            for place in &open {
                if let Some(server) = self.slots[*place as usize].server.as_mut() {
                    server.draw /= draw_max.max(1e-9);
                }
            }
            loads.sort_by(f64::total_cmp);
            let at = (loads.len() as f64 * self.settings.hot_quantile) as usize;
            let zone = &mut self.zones[idx];
            zone.hot_above =
                loads.get(at.min(loads.len().saturating_sub(1))).copied().unwrap_or(0.0);
            (zone.open, zone.open_weight, zone.all_weight) = (open, open_weight, all_weight);
        }
    }

    fn note(&mut self, event: Event) {
        // Whoever does not collect them loses the oldest.
        if self.events.len() >= 256 {
            self.events.remove(0);
        }
        self.events.push(event);
    }

    /// What happened since the last call.
    pub fn take_events(&mut self) -> Vec<Event> {
        std::mem::take(&mut self.events)
    }

    pub fn servers(&self) -> impl Iterator<Item = &Server> {
        self.slots.iter().filter_map(|slot| slot.server.as_ref()).filter(|server| !server.leaving)
    }

    /// The zones that have servers, the closest first.
    pub fn zones(&self) -> impl Iterator<Item = &Zone> {
        self.order.iter().map(|zone| &self.zones[*zone]).filter(|zone| zone.all_weight > 0.0)
    }

    pub fn is_panicking(&self) -> bool {
        self.is_panicking
    }

    fn server(&self, place: u32) -> Option<&Server> {
        self.slots.get(place as usize)?.server.as_ref()
    }

    fn count(&self, is: impl Fn(&Server) -> bool) -> usize {
        self.servers().filter(|server| is(server)).count()
    }

    fn places(&self, is: impl Fn(&Server) -> bool) -> Vec<u32> {
        let all = self.slots.iter().enumerate();
        let those = all.filter(|(_, slot)| slot.server.as_ref().is_some_and(&is));
        those.map(|(place, _)| u32::try_from(place).unwrap_or(u32::MAX)).collect()
    }
}

/// The lower one of two in the middle.
fn median(values: impl Iterator<Item = f64>) -> Option<f64> {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    values.get((values.len().max(1) - 1) / 2).copied()
}

/// How much a zone takes before the next closest is asked.
fn willing(zone: &Zone) -> f64 {
    if zone.has_room() { zone.open_weight * zone.share } else { 0.0 }
}

/// The one of `zones` under which `at` falls when their weights lie in a row.
fn weighted(zones: &[usize], mut at: f64, weight: impl Fn(usize) -> f64) -> Option<usize> {
    let mut last = None;
    for zone in zones {
        let own = weight(*zone);
        if own <= 0.0 {
            continue;
        }
        last = Some(*zone);
        if at < own {
            break;
        }
        at -= own;
    }
    last
}
