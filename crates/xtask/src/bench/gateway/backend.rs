//! The servers behind the proxies: `xtask backend --ports 30001,30002`, one process and one thread
//! for all of its ports. The request says what the answer costs, so that every system is given the
//! very same work in the same order:
//!
//!     GET /128        at once, 128 bytes
//!     GET /128/20000  128 bytes, after 20,000 µs in one of the port's slots
//!
//! Work is sleep: it loads a backend without taking CPU from the proxy. A port has `--slots` slots
//! and a queue in front of them, first come, first served; on a port named by `--slow` work takes
//! `--factor` times as long. Who leaves the queue (the connection closes) costs nothing.
//!
//! Commands on standard input: `fail` (answer 503 at once from now on), `serve`, `count`. Each is
//! answered with `count N`: how many requests of the form above have come so far. The process ends
//! with its standard input, so with whoever started it.

use super::answer::find;
use super::processes::{self, Process};
use super::sockets::{MICROSECOND, Poller, SPECIAL, Slab, listen, now_ns};
use anyhow::{Context, Result, bail};
use clap::Args;
use rustix::event::epoll::EventFlags;
use rustix::net::{SocketFlags, accept_with};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{ChildStdin, ChildStdout, Stdio};

#[derive(Args, Clone)]
pub struct Options {
    #[arg(long, value_delimiter = ',', required = true)]
    pub ports: Vec<u16>,
    /// Requests that a port works on at once.
    #[arg(long, default_value_t = 4)]
    pub slots: usize,
    /// Ports on which work takes `factor` times as long.
    #[arg(long, value_delimiter = ',')]
    pub slow: Vec<u16>,
    #[arg(long, default_value_t = 16)]
    pub factor: u64,
}

struct Server {
    poller: Poller,
    doors: Vec<Door>,
    connections: Slab<Connection>,
    /// Work under way by when it is done.
    due: BinaryHeap<Reverse<(u64, Job)>>,
    slots: usize,
    failing: bool,
    n_requests: u64,
    buffer: Vec<u8>,
}

/// One port.
struct Door {
    listener: TcpListener,
    factor: u64,
    n_busy: usize,
    queue: VecDeque<Job>,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Job {
    door: usize,
    connection: u64,
    n_bytes: usize,
    work_us: u64,
    arrived_ns: u64,
}

struct Connection {
    stream: TcpStream,
    door: usize,
    input: Vec<u8>,
    output: Vec<u8>,
    n_written: usize,
    /// Told to the poller: the rest of `output` goes when there is room.
    waits_for_room: bool,
    /// A request is being worked on or answered; the next one waits in `input`.
    busy: bool,
}

const STDIN: u64 = u64::MAX;
const BYTES_MAX: usize = 1 << 20;

pub fn run(options: &Options) -> Result<()> {
    let poller = Poller::new()?;
    let mut doors = Vec::new();
    for (idx, port) in options.ports.iter().enumerate() {
        let listener = listen(*port)?;
        poller.add(&listener, SPECIAL + idx as u64, EventFlags::IN)?;
        let factor = if options.slow.contains(port) { options.factor } else { 1 };
        doors.push(Door { listener, factor, n_busy: 0, queue: VecDeque::new() });
    }
    poller.add(std::io::stdin(), STDIN, EventFlags::IN)?;
    let mut server = Server {
        poller,
        doors,
        connections: Slab::new(),
        due: BinaryHeap::new(),
        slots: options.slots,
        failing: false,
        n_requests: 0,
        buffer: vec![0; 64 * 1024],
    };
    server.tell()?;
    let mut ready = Vec::new();
    loop {
        let next = server.due.peek().map(|Reverse((due, _))| *due);
        server.poller.wait(next, &mut ready)?;
        while let Some(Reverse((due, job))) = server.due.peek().copied()
            && due <= now_ns()
        {
            server.due.pop();
            server.finish(due, job)?;
        }
        for (token, flags) in &ready {
            match *token {
                STDIN => {
                    if !server.command()? {
                        return Ok(());
                    }
                }
                token if token >= SPECIAL => server.welcome((token - SPECIAL) as usize)?,
                token => server.serve(token, *flags)?,
            }
        }
    }
}

impl Server {
    /// Whether to go on.
    fn command(&mut self) -> Result<bool> {
        let mut line = [0; 64];
        let n = std::io::stdin().read(&mut line)?;
        for word in line[..n].split(u8::is_ascii_whitespace).filter(|word| !word.is_empty()) {
            match word {
                b"fail" => self.failing = true,
                b"serve" => self.failing = false,
                b"count" => {}
                other => bail!("unknown command {:?}", String::from_utf8_lossy(other)),
            }
            self.tell()?;
        }
        Ok(n > 0)
    }

    fn tell(&self) -> Result<()> {
        let mut stdout = std::io::stdout();
        writeln!(stdout, "count {}", self.n_requests)?;
        Ok(stdout.flush()?)
    }

    fn welcome(&mut self, door: usize) -> Result<()> {
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        loop {
            let stream = match accept_with(&self.doors[door].listener, flags) {
                Ok(socket) => TcpStream::from(socket),
                Err(error) if error == rustix::io::Errno::AGAIN => return Ok(()),
                // The newcomer has left again.
                Err(error) if error == rustix::io::Errno::CONNABORTED => continue,
                Err(error) => return Err(error).context("accept"),
            };
            stream.set_nodelay(true)?;
            let token = self.connections.insert(Connection {
                stream,
                door,
                input: Vec::new(),
                output: Vec::new(),
                n_written: 0,
                waits_for_room: false,
                busy: false,
            });
            if let Some(connection) = self.connections.get_mut(token) {
                self.poller.add(&connection.stream, token, EventFlags::IN)?;
            }
        }
    }

    fn serve(&mut self, token: u64, flags: EventFlags) -> Result<()> {
        if flags.contains(EventFlags::OUT) {
            self.write(token)?;
        }
        if !flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
            return Ok(());
        }
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        match connection.stream.read(&mut self.buffer) {
            Ok(0) => {
                self.connections.remove(token);
                return Ok(());
            }
            Ok(n) => connection.input.extend_from_slice(&self.buffer[..n]),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
            // Reset: proxies may leave like that.
            Err(_) => {
                self.connections.remove(token);
                return Ok(());
            }
        }
        self.advance(token)
    }

    /// Takes up requests that have arrived whole, as far as the connection is free for them.
    fn advance(&mut self, token: u64) -> Result<()> {
        while let Some(connection) = self.connections.get_mut(token)
            && !connection.busy
            && let Some(end) = find(&connection.input, b"\r\n\r\n")
        {
            let asked = asked(&connection.input[..end]);
            connection.input.drain(..end + 4);
            connection.busy = true;
            let door = connection.door;
            // Anything else is a health check of the proxy's own.
            self.n_requests += u64::from(asked.is_some());
            let (n_bytes, work_us) = asked.unwrap_or((0, 0));
            let job = Job { door, connection: token, n_bytes, work_us, arrived_ns: now_ns() };
            if self.failing {
                self.answer(token, "503 Service Unavailable", 0)?;
            } else if work_us == 0 {
                self.answer(token, "200 OK", n_bytes)?;
            } else if self.doors[door].n_busy < self.slots {
                self.start(job, job.arrived_ns);
            } else {
                self.doors[door].queue.push_back(job);
            }
        }
        Ok(())
    }

    fn start(&mut self, job: Job, at_ns: u64) {
        let door = &mut self.doors[job.door];
        door.n_busy += 1;
        self.due.push(Reverse((at_ns + job.work_us * door.factor * MICROSECOND, job)));
    }

    /// The slot has been free since `due_ns`, and so has the next one been under way since then:
    /// however late this process is woken, a slot does as much as it should.
    fn finish(&mut self, due_ns: u64, job: Job) -> Result<()> {
        self.doors[job.door].n_busy -= 1;
        while self.doors[job.door].n_busy < self.slots
            && let Some(next) = self.doors[job.door].queue.pop_front()
        {
            if self.connections.get_mut(next.connection).is_some() {
                self.start(next, due_ns.max(next.arrived_ns));
            }
        }
        self.answer(job.connection, "200 OK", job.n_bytes)?;
        self.advance(job.connection)
    }

    fn answer(&mut self, token: u64, status: &str, n_bytes: usize) -> Result<()> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        connection.output.clear();
        connection.n_written = 0;
        write!(
            connection.output,
            "HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {n_bytes}\r\n\r\n"
        )?;
        connection.output.resize(connection.output.len() + n_bytes, b'x');
        self.write(token)
    }

    fn write(&mut self, token: u64) -> Result<()> {
        let Some(connection) = self.connections.get_mut(token) else { return Ok(()) };
        match connection.stream.write(&connection.output[connection.n_written..]) {
            Ok(n) => connection.n_written += n,
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => {
                self.connections.remove(token);
                return Ok(());
            }
        }
        if connection.n_written < connection.output.len() {
            connection.waits_for_room = true;
            let what = EventFlags::IN | EventFlags::OUT;
            return self.poller.modify(&connection.stream, token, what);
        }
        connection.busy = false;
        if connection.waits_for_room {
            connection.waits_for_room = false;
            self.poller.modify(&connection.stream, token, EventFlags::IN)?;
            self.advance(token)?;
        }
        Ok(())
    }
}

/// Size and work from `GET /SIZE[/WORK_US] HTTP/1.1`.
fn asked(head: &[u8]) -> Option<(usize, u64)> {
    let line = head.split(|byte| *byte == b'\r').next()?;
    let path = std::str::from_utf8(line).ok()?.strip_prefix("GET /")?.split(' ').next()?;
    let (n_bytes, work_us) = path.split_once('/').unwrap_or((path, "0"));
    let n_bytes: usize = n_bytes.parse().ok()?;
    (n_bytes <= BYTES_MAX).then_some((n_bytes, work_us.parse().ok()?))
}

/// A backend process that the bench has started.
pub struct Backend {
    process: Process,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Backend {
    /// Returns once its ports are open.
    pub fn start(options: &Options) -> Result<Backend> {
        let list = |ports: &[u16]| ports.iter().map(u16::to_string).collect::<Vec<_>>().join(",");
        let mut command = processes::child(std::env::current_exe()?);
        command.args(["backend", "--ports", &list(&options.ports)]);
        command.args(["--slots", &options.slots.to_string()]);
        if !options.slow.is_empty() {
            command.args(["--slow", &list(&options.slow)]);
            command.args(["--factor", &options.factor.to_string()]);
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("setpriv")?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            bail!("a backend without pipes");
        };
        let process = Process::new("backend", child);
        let mut backend = Backend { process, stdin, stdout: BufReader::new(stdout) };
        backend.count_line()?;
        Ok(backend)
    }

    /// Answer 503 at once from now on; returns the requests so far.
    pub fn fail(&mut self) -> Result<u64> {
        self.order("fail")
    }

    /// Answer as asked from now on; returns the requests so far.
    pub fn serve(&mut self) -> Result<u64> {
        self.order("serve")
    }

    pub fn kill(self) -> Result<()> {
        self.process.kill()
    }

    fn order(&mut self, word: &str) -> Result<u64> {
        writeln!(self.stdin, "{word}").context("a backend has died")?;
        self.count_line()
    }

    fn count_line(&mut self) -> Result<u64> {
        let mut line = String::new();
        self.stdout.read_line(&mut line)?;
        match line.strip_prefix("count ").and_then(|count| count.trim().parse().ok()) {
            Some(count) => Ok(count),
            None => bail!("a backend has died; what it said stands above"),
        }
    }
}
