//! Processes that the bench starts, and what /proc says of them: CPU time and memory, summed over a
//! process and its descendants (nginx and Atoll have several).

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, setrlimit};
use std::ffi::OsStr;
use std::net::{Ipv4Addr, TcpListener};
use std::process::{Child, Command, ExitStatus};
use std::time::{Duration, Instant};

/// `program`, to be started as a process that ends with the bench even if that is killed.
pub fn child(program: impl AsRef<OsStr>) -> Command {
    // Of util-linux, which Debian always has; it becomes the program and keeps its process id.
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "--"]).arg(program);
    command
}

/// A child that ends when this is dropped.
pub struct Process {
    name: &'static str,
    child: Child,
}

impl Process {
    pub fn new(name: &'static str, child: Child) -> Process {
        Process { name, child }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it has ended, if it has.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn wait(mut self) -> Result<ExitStatus> {
        Ok(self.child.wait()?)
    }

    /// SIGKILL, as a machine that loses power.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    fn stop(&mut self) -> Result<()> {
        if self.child.try_wait()?.is_some() {
            return Ok(());
        }
        let family = Family::of(self.pid())?;
        kill_process(Pid::from_child(&self.child), Signal::TERM)?;
        let begun = Instant::now();
        while self.child.try_wait()?.is_none() {
            if begun.elapsed() > Duration::from_secs(5) {
                eprintln!("{} does not stop on SIGTERM: killed", self.name);
                for pid in &family.0 {
                    // Its children may have ended with it in the meantime.
                    let Some(pid) = Pid::from_raw(pid.cast_signed()) else { continue };
                    kill_process(pid, Signal::KILL).ok();
                }
                self.child.wait()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("{} (process {}) may still run: {error:#}", self.name, self.pid());
        }
    }
}

/// A process and its descendants, as they were when asked.
pub struct Family(Vec<u32>);

impl Family {
    pub fn of(root: u32) -> Result<Family> {
        let mut parents = Vec::new();
        for entry in std::fs::read_dir("/proc").context("/proc")? {
            let Ok(pid) = entry?.file_name().to_string_lossy().parse::<u32>() else { continue };
            // Processes end between the listing and the reading.
            if let Ok(parent) = stat(pid).and_then(|fields| field(&fields, PARENT)) {
                parents.push((pid, parent));
            }
        }
        let mut family = vec![root];
        let mut idx = 0;
        while idx < family.len() {
            let parent = u64::from(family[idx]);
            family.extend(parents.iter().filter(|(_, of)| *of == parent).map(|(pid, _)| *pid));
            idx += 1;
        }
        Ok(Family(family))
    }

    /// User and system time so far, to a tick (10 ms) for each process.
    pub fn cpu_us(&self) -> Result<u64> {
        let mut ticks = 0;
        for pid in &self.0 {
            let fields = stat(*pid)?;
            ticks += field(&fields, USER_TIME)? + field(&fields, SYSTEM_TIME)?;
        }
        // The kernel counts a hundred ticks a second, whatever its own clock does.
        Ok(ticks * 10_000)
    }

    /// Proportional set size: a page that several of them share is counted once. Socket buffers are
    /// the kernel's and not in it.
    pub fn memory_kib(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in &self.0 {
            let path = format!("/proc/{pid}/smaps_rollup");
            let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            let kib = text.lines().find_map(|line| line.strip_prefix("Pss:"));
            let kib = kib.and_then(|rest| rest.split_whitespace().next());
            sum += kib.with_context(|| format!("{path} names no Pss"))?.parse::<u64>()?;
        }
        Ok(sum)
    }
}

// Of the fields behind the name: state is 0.
const PARENT: usize = 1;
const USER_TIME: usize = 11;
const SYSTEM_TIME: usize = 12;

fn stat(pid: u32) -> Result<Vec<String>> {
    let path = format!("/proc/{pid}/stat");
    let text = std::fs::read_to_string(&path).with_context(|| format!("{path}: has it died?"))?;
    // The name, in parentheses, may hold anything.
    let (_, fields) = text.rsplit_once(')').unwrap_or(("", ""));
    Ok(fields.split_whitespace().map(str::to_owned).collect())
}

fn field(fields: &[String], idx: usize) -> Result<u64> {
    let field = fields.get(idx).with_context(|| format!("/proc/PID/stat has no field {idx}"))?;
    Ok(field.parse()?)
}

/// Lets this process and its children open `n` files, as many as are allowed at least.
pub fn allow_files(n: u64) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: Some(n), maximum: limit.maximum.map(|hard| hard.max(n)) };
    if setrlimit(Resource::Nofile, raised).is_ok() {
        return Ok(());
    }
    // Not allowed to raise the hard limit.
    let current = limit.maximum;
    setrlimit(Resource::Nofile, Rlimit { current, maximum: limit.maximum })?;
    Ok(())
}

pub fn files_allowed() -> u64 {
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

pub fn require_free(ports: impl Iterator<Item = u16>) -> Result<()> {
    let taken: Vec<String> = ports
        .filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_err())
        .map(|port| port.to_string())
        .collect();
    if !taken.is_empty() {
        bail!(
            "the bench's own ports on 127.0.0.1 are in use: {}; `ss -ltnp` says by whom",
            taken.join(", ")
        );
    }
    Ok(())
}
