//! A cluster on this machine, as its directory describes it.
//!
//! ```text
//! atoll-data/cluster.json      the plan: every node's number, id, zone and addresses
//! atoll-data/node-1/           the first node's data directory (its log in `log.txt`)
//! atoll-data/requests/start-2  somebody wants node 2 started
//! atoll-data/tls/              the cluster's own authority, and each node's certificate and key
//! ```

use super::Result;
use crate::certificates;
use crate::config::AuthMethod;
use crate::identity::Home;
use base::{Env, NodeId, Zone};
use cluster::{NodeRow, Topology};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Plan {
    pub cluster: u64,
    pub nodes: Vec<PlannedNode>,
    /// How SQL clients prove who they are; `trust` where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub auth: Option<AuthMethod>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedNode {
    /// From 1; what `chaos` takes and the ports count from.
    pub number: u16,
    pub zone: String,
    pub peer_address: SocketAddr,
    pub sql_address: SocketAddr,
}

/// Certificates that expire earlier are renewed.
const DAYS_LEFT_MIN: u32 = 90;

impl PlannedNode {
    /// The name in its certificate.
    pub fn name(&self) -> String {
        format!("node-{}", self.number)
    }
}

fn plan_path(data: &Path) -> PathBuf {
    data.join("cluster.json")
}

pub fn node_dir(data: &Path, number: u16) -> PathBuf {
    data.join(format!("node-{number}"))
}

/// The cluster's authority and the certificates of its nodes.
pub fn tls_dir(data: &Path) -> PathBuf {
    data.join("tls")
}

pub fn requests_dir(data: &Path) -> PathBuf {
    data.join("requests")
}

impl Plan {
    /// The cluster that stands in `data`, if there is one.
    pub fn load(data: &Path) -> Result<Option<Plan>> {
        match std::fs::read(plan_path(data)) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes).map_err(|error| {
                format!("{} does not read as it was written: {error}", plan_path(data).display())
            })?)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(format!("cannot read {}: {error}", plan_path(data).display()).into()),
        }
    }

    pub fn require(data: &Path) -> Result<Plan> {
        Plan::load(data)?.ok_or_else(|| {
            format!("there is no cluster in {}: start one with `atoll up`, or name its directory with --data", data.display()).into()
        })
    }

    pub fn node(&self, number: u16) -> Result<&PlannedNode> {
        self.nodes.iter().find(|node| node.number == number).ok_or_else(|| {
            format!("there is no node {number}: this cluster has 1 to {}", self.nodes.len()).into()
        })
    }

    /// Lays out a new cluster: its plan, and every founder's identity.
    pub fn found(
        env: &Env,
        data: &Path,
        zones: u16,
        per_zone: u16,
        port_offset: u16,
    ) -> Result<Plan> {
        let port = |base: u16, number: u16| -> Result<SocketAddr> {
            let port = base.checked_add(number).and_then(|port| port.checked_add(port_offset));
            let port =
                port.ok_or_else(|| format!("--port-offset {port_offset} leaves no ports"))?;
            Ok(SocketAddr::from(([127, 0, 0, 1], port)))
        };
        let mut nodes = Vec::new();
        for number in 1..=zones * per_zone {
            nodes.push(PlannedNode {
                number,
                zone: format!("zone-{}", (number - 1) % zones + 1),
                peer_address: port(7400, number)?,
                sql_address: port(5432, number)?,
            });
        }
        let plan = Plan { cluster: env.random().max(1), nodes, auth: None };
        // The first node of each zone founds the cluster; the others join it.
        let founders = plan.nodes.iter().take(usize::from(zones)).map(|node| NodeRow {
            id: NodeId(u64::from(node.number)),
            zone: Zone(node.zone.clone()),
            peer_address: node.peer_address,
            sql_address: node.sql_address,
            boot: 0,
            since_us: env.wall_us(),
            ticket: 0,
            replaced_by: None,
            name: Some(node.name()),
        });
        let topology = Topology::of(founders);
        for node in &plan.nodes {
            if let Some(own) = topology.nodes.get(&NodeId(u64::from(node.number))) {
                let home = Home::open(&node_dir(data, node.number))?;
                home.found(plan.cluster, own, &topology)?;
            }
        }
        plan.save(data)?;
        Ok(plan)
    }

    pub fn save(&self, data: &Path) -> Result<()> {
        std::fs::write(plan_path(data), serde_json::to_vec_pretty(self)?)
            .map_err(|error| format!("cannot write {}: {error}", plan_path(data).display()))?;
        Ok(())
    }

    /// Makes what is missing of the cluster's own certificates, and renews what expires soon.
    pub fn certify(&self, env: &Env, data: &Path) -> Result<()> {
        let dir = tls_dir(data);
        let authority = certificates::pair(&dir, certificates::AUTHORITY);
        if !authority.certificate.exists() && !authority.key.exists() {
            certificates::make_authority(env, &dir, certificates::AUTHORITY_DAYS)?;
        }
        let hosts = ["localhost", "127.0.0.1", "::1"].map(str::to_owned);
        for node in &self.nodes {
            let files = certificates::pair(&dir, &node.name());
            if !certificates::is_good_for(env, &files.certificate, DAYS_LEFT_MIN) {
                // The authority's life is the longest that makes sense.
                let days = certificates::AUTHORITY_DAYS - 1;
                certificates::make_node(env, &dir, &node.name(), &hosts, days)?;
            }
        }
        Ok(())
    }
}

/// Is this process one of ours? Process ids are used again by the operating system.
pub fn is_ours(pid: i32, dir: &Path) -> bool {
    let Ok(command) = std::fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let words: Vec<&[u8]> = command.split(|byte| *byte == 0).collect();
    words.contains(&dir.as_os_str().as_encoded_bytes())
}

/// The process whose id stands in `name`, if it runs.
pub fn process(dir: &Path, name: &str) -> Option<nix::unistd::Pid> {
    let pid = Home::open(dir).ok()?.pid(name).ok()??;
    is_ours(pid, dir).then(|| nix::unistd::Pid::from_raw(pid))
}
