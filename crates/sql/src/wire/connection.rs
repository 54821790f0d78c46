//! One connection's life after its startup: message by message until the end.

mod pipe;
mod startup;

pub use pipe::Gone;

use super::request::{self, Bind, Formats, Request, Target};
use super::{Place, Server, no_memory, reply, secrets};
use crate::error::{Error, Result, state};
use crate::session::{
    Column, CopyIn, CopyOut, Notice, Outcome, Prepared, RowStream, Session, TagKind,
    TransactionStatus,
};
use crate::types::{Datum, Row, binary, text};
use base::env::Stream;
use base::panics;
use base::{Budget, Loan};
use bytes::Bytes;
use futures::StreamExt;
use pipe::{Flow, Pipe};
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const DUPLICATE_CURSOR: &str = "42P03";
const INVALID_CURSOR_NAME: &str = "34000";

/// Reads, checks and answers one client until it leaves or is sent away.
pub async fn run(server: &Arc<Server>, stream: Stream, from: IpAddr, place: &Place) -> Flow<()> {
    let env = server.engine.env().clone();
    let mut pipe = Pipe::new(stream, from, server);
    let opening = panics::contained(startup::open(server, &mut pipe, place));
    let opened = env.timeout(server.patience.startup, opening).await;
    let opened =
        opened.map(|opened| opened.unwrap_or_else(|panicked| Err(Gone::Refused(bug(&panicked)))));
    let session = match opened {
        None => {
            let error = Error::new(state::QUERY_CANCELED, "the startup took too long");
            return Err(pipe.refuse(error).await);
        }
        Some(Err(Gone::Refused(error))) => return Err(pipe.refuse(error).await),
        Some(Err(gone)) => return Err(gone),
        Some(Ok(None)) => return Ok(()),
        Some(Ok(Some(session))) => session,
    };
    let mut connection = Connection {
        pipe,
        session,
        memory: server.memory.clone(),
        statement_bytes_max: server.limits.statement_bytes,
        n_portals_max: server.limits.portals,
        statements: HashMap::new(),
        portals: HashMap::new(),
        skipping: false,
    };
    match connection.serve().await {
        Err(Gone::Refused(error)) => {
            let error = connection.session.unfinished_commit().unwrap_or(error);
            Err(connection.pipe.refuse(error).await)
        }
        other => other,
    }
}

fn send_notices(session: &mut Session, out: &mut Vec<u8>) {
    for notice in session.notices() {
        match notice {
            Notice::Message { severity, state, message } => {
                reply::notice(out, severity, state, &message);
            }
            Notice::Setting { name, value } => reply::parameter_status(out, &name, &value),
        }
    }
}

/// What a prepared statement takes, roughly: so much, and so much for each byte of its text.
const STATEMENT_BYTES: usize = 8 << 10;
const BYTES_OF_A_BYTE: usize = 16;
/// What a named portal takes beside its parameters, and when it waits in the middle of its rows.
const PORTAL_BYTES: usize = 4 << 10;
const RUNNING_BYTES: usize = 512 << 10;

/// A bound statement.
struct Portal {
    prepared: Arc<Prepared>,
    params: Vec<Datum>,
    results: Formats,
    state: PortalState,
    loan: Loan,
}

enum PortalState {
    Bound,
    Running(Running),
    /// Its tag was sent; executing it again returns no rows.
    Done,
}

/// A result being sent: the rows of the last batch from `next` on are still to go.
struct Running {
    columns: Arc<[Column]>,
    rows: RowStream,
    tag: TagKind,
    batch: Vec<Row>,
    next: usize,
}

impl Running {
    fn new(columns: Arc<[Column]>, rows: RowStream, tag: TagKind) -> Running {
        Running { columns, rows, tag, batch: Vec::new(), next: 0 }
    }
}

struct Connection {
    pipe: Pipe,
    session: Session,
    /// With what each of them takes.
    statements: HashMap<String, (Arc<Prepared>, Loan)>,
    memory: Budget,
    statement_bytes_max: usize,
    n_portals_max: usize,
    portals: HashMap<String, Portal>,
    /// After an error in the extended protocol: everything up to Sync is passed over.
    skipping: bool,
}

/// An error of the statement, which the client is told and the connection survives, or the end.
enum Failure {
    Statement(Error),
    Gone(Gone),
}

impl Failure {
    /// Without what must not be told of this statement's text.
    fn hide(self, sql: &str) -> Failure {
        match self {
            Failure::Statement(error) => Failure::Statement(secrets::hide(error, sql)),
            gone => gone,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::Statement(error)
    }
}

impl From<Gone> for Failure {
    fn from(gone: Gone) -> Failure {
        Failure::Gone(gone)
    }
}

type Step<T = ()> = std::result::Result<T, Failure>;

impl Connection {
    async fn serve(&mut self) -> Flow<()> {
        loop {
            let canceler = self.session.canceler();
            let silence = self.session.silence();
            let env = self.pipe.env.clone();
            let coming = async {
                match silence {
                    None => self.pipe.next().await,
                    Some((patience, error)) => {
                        let next = env.timeout(patience, self.pipe.next()).await;
                        next.unwrap_or(Err(Gone::Refused(error)))
                    }
                }
            };
            let next = tokio::select! {
                biased;
                () = canceler.terminated() => Err(Gone::Refused(terminated())),
                next = coming => next,
            };
            let (tag, body) = next?;
            if self.skipping && tag != b'S' && tag != b'X' {
                continue;
            }
            if tag == b'X' {
                return Ok(());
            }
            self.pipe.mark();
            let step = match panics::contained(self.step(tag, body)).await {
                Ok(step) => step,
                Err(panicked) => {
                    self.pipe.take_back();
                    // A commit goes on to its end, whoever waited for it.
                    let unfinished = self.session.unfinished_commit();
                    panics::contained(self.session.failed_by_bug()).await.ok();
                    Err(Failure::Statement(unfinished.unwrap_or_else(|| bug(&panicked))))
                }
            };
            match step {
                Ok(()) => {}
                Err(Failure::Gone(gone)) => return Err(gone),
                Err(Failure::Statement(error)) => {
                    send_notices(&mut self.session, &mut self.pipe.output);
                    reply::error(&mut self.pipe.output, "ERROR", &error);
                    self.session.failed();
                    if request::is_extended(tag) {
                        // Some clients wait for the answer to each message before they send the next.
                        self.pipe.flush().await?;
                        self.skipping = true;
                    } else {
                        let ended = panics::contained(self.end_statements(true)).await;
                        ended.unwrap_or_else(|panicked| Err(Gone::Refused(bug(&panicked))))?;
                    }
                }
            }
            self.pipe.flush_if_large().await?;
        }
    }

    async fn step(&mut self, tag: u8, body: Bytes) -> Step {
        match Request::parse(tag, body) {
            Ok(request) => self.handle(request).await,
            // The frame is intact, so the connection can go on; PostgreSQL does the same.
            Err(error) if request::is_extended(tag) || tag == b'Q' => Err(error.into()),
            Err(error) => Err(Gone::Refused(error).into()),
        }
    }

    /// The rare requests are boxed, so that the futures of the frequent ones stay small: a future
    /// is moved into its place whole, whatever part of it is used.
    async fn handle(&mut self, request: Request) -> Step {
        match request {
            Request::Query { sql } => {
                let done = Box::pin(self.query(&sql)).await;
                done.map_err(|failure| failure.hide(&sql))
            }
            Request::Parse { name, sql, types } => {
                let done = Box::pin(self.parse(&name, &sql, &types)).await;
                done.map_err(|failure| failure.hide(&sql))
            }
            Request::Bind(bind) => self.bind(bind),
            Request::Describe { target, name } => self.describe(target, &name),
            Request::Execute { portal, n_rows_max } => self.execute(&portal, n_rows_max).await,
            Request::Close { target, name } => {
                match target {
                    Target::Statement => drop(self.statements.remove(&*name)),
                    Target::Portal => drop(self.portals.remove(&*name)),
                }
                reply::close_complete(&mut self.pipe.output);
                Ok(())
            }
            Request::Flush => Ok(self.pipe.flush().await?),
            Request::Sync => {
                let error = std::mem::replace(&mut self.skipping, false);
                Ok(self.end_statements(error).await?)
            }
            // What a client still sends of a COPY that has failed.
            Request::CopyData(_) | Request::CopyDone | Request::CopyFail { .. } => Ok(()),
            Request::Password => {
                Err(Gone::Refused(request::violation("unexpected password message")).into())
            }
            Request::Terminate => Ok(()),
        }
    }

    /// Ends the implicit transaction and tells the client that it may go on.
    async fn end_statements(&mut self, error: bool) -> Flow<()> {
        if self.session.status() == TransactionStatus::Idle {
            // Their readers hold snapshots.
            self.portals.clear();
        }
        if let Err(error) = self.pipe.attend(self.session.finish(error)).await? {
            reply::error(&mut self.pipe.output, "ERROR", &error);
        }
        if self.session.status() == TransactionStatus::Idle {
            self.portals.clear();
        }
        send_notices(&mut self.session, &mut self.pipe.output);
        reply::ready(&mut self.pipe.output, self.session.status().letter());
        self.pipe.flush().await
    }

    /// A simple query: its statements one after the other, in one implicit transaction.
    async fn query(&mut self, sql: &str) -> Step {
        self.check_length(sql)?;
        if self.deallocate(sql) {
            self.complete("DEALLOCATE");
            return Ok(self.end_statements(false).await?);
        }
        let statements = Session::split(sql)?;
        if statements.is_empty() {
            reply::empty_query(&mut self.pipe.output);
        }
        for statement in &statements {
            let Connection { pipe, session, .. } = self;
            let answer = pipe.attend(async {
                let prepared = session.prepare_parsed(statement).await?;
                session.execute(&prepared, Vec::new()).await
            });
            let outcome = answer.await??;
            if let Outcome::Rows { columns, .. } = &outcome {
                reply::row_description(&mut self.pipe.output, columns, &Formats::default());
            }
            self.answer(outcome).await?;
        }
        Ok(self.end_statements(false).await?)
    }

    /// `DEALLOCATE name` for a statement that the protocol prepared; the session knows only those
    /// that PREPARE made.
    fn deallocate(&mut self, sql: &str) -> bool {
        if self.statements.is_empty() || self.session.status() == TransactionStatus::Failed {
            return false;
        }
        let mut words = sql.trim_end_matches([';', ' ', '\n']).split_whitespace();
        if !words.next().is_some_and(|word| word.eq_ignore_ascii_case("deallocate")) {
            return false;
        }
        let mut name = words.next();
        if name.is_some_and(|word| word.eq_ignore_ascii_case("prepare")) {
            name = words.next();
        }
        let (Some(name), None) = (name, words.next()) else { return false };
        if name.eq_ignore_ascii_case("all") {
            self.statements.clear();
            return false;
        }
        let name = match name.strip_prefix('"').and_then(|name| name.strip_suffix('"')) {
            Some(exact) => exact.replace("\"\"", "\""),
            None => name.to_lowercase(),
        };
        self.statements.remove(&name).is_some()
    }

    /// Sends a statement's whole answer, rows as text. The row description has gone before.
    async fn answer(&mut self, outcome: Outcome) -> Step {
        match outcome {
            Outcome::Rows { columns, rows, tag } => {
                let mut running = Running::new(columns, rows, tag);
                let formats = Formats::default();
                let mut n_rows = 0;
                while let Some(n) = self.send_rows(&mut running, &formats, usize::MAX).await? {
                    n_rows += n;
                }
                self.complete(&running.tag.tag(n_rows));
            }
            other => self.answer_without_rows(other).await?,
        }
        Ok(())
    }

    async fn answer_without_rows(&mut self, outcome: Outcome) -> Step {
        match outcome {
            Outcome::Rows { .. } => Err(Error::internal("rows where none were described").into()),
            Outcome::Done { tag } => {
                self.complete(&tag);
                Ok(())
            }
            Outcome::Empty => {
                reply::empty_query(&mut self.pipe.output);
                Ok(())
            }
            Outcome::CopyIn(copy) => Box::pin(self.copy_in(copy)).await,
            Outcome::CopyOut(copy) => Box::pin(self.copy_out(copy)).await,
        }
    }

    fn complete(&mut self, tag: &str) {
        send_notices(&mut self.session, &mut self.pipe.output);
        reply::command_complete(&mut self.pipe.output, tag);
    }

    /// Sends what is left of the batch at hand, or the next one, up to `n_rows_max` rows. Returns how
    /// many; none at the end.
    async fn send_rows(
        &mut self,
        running: &mut Running,
        formats: &Formats,
        n_rows_max: usize,
    ) -> Step<Option<u64>> {
        if running.next == running.batch.len() {
            match self.pipe.attend(running.rows.next()).await? {
                None => return Ok(None),
                Some(batch) => running.batch = batch?,
            }
            running.next = 0;
        }
        let zone = self.session.zone();
        let end = running.batch.len().min(running.next.saturating_add(n_rows_max));
        for row in &running.batch[running.next..end] {
            self.pipe.mark();
            reply::data_row(&mut self.pipe.output, &running.columns, formats, row, &zone)?;
            self.pipe.flush_if_large().await?;
        }
        let n = end - running.next;
        running.next = end;
        Ok(Some(n as u64))
    }

    async fn parse(&mut self, name: &str, sql: &str, types: &[u32]) -> Step {
        if !name.is_empty() && self.statements.contains_key(name) {
            let message = format!("prepared statement \"{name}\" already exists");
            return Err(Error::new(state::DUPLICATE_STATEMENT, message).into());
        }
        self.check_length(sql)?;
        let hints = types.iter().map(|&oid| parameter_type(oid)).collect::<Result<Vec<_>>>()?;
        let prepared = self.pipe.attend(self.session.prepare(sql, &hints)).await??;
        let bytes = STATEMENT_BYTES + sql.len() * BYTES_OF_A_BYTE;
        let loan = self.memory.borrow(bytes);
        let loan = loan.map_err(|exhausted| no_memory("a prepared statement", &exhausted))?;
        self.statements.insert(name.to_owned(), (Arc::new(prepared), loan));
        reply::parse_complete(&mut self.pipe.output);
        Ok(())
    }

    fn check_length(&self, sql: &str) -> Result<()> {
        if sql.len() <= self.statement_bytes_max {
            return Ok(());
        }
        let (n, max) = (sql.len(), self.statement_bytes_max);
        let message = format!("a statement of {n} bytes exceeds the limit of {max}");
        Err(Error::new(state::LIMIT_EXCEEDED, message)
            .hint("Send the values as parameters, or by COPY."))
    }

    fn statement(&self, name: &str) -> Result<&Arc<Prepared>> {
        self.statements.get(name).map(|(prepared, _)| prepared).ok_or_else(|| {
            let message = match name {
                "" => "unnamed prepared statement does not exist".to_owned(),
                name => format!("prepared statement \"{name}\" does not exist"),
            };
            Error::new(state::INVALID_STATEMENT_NAME, message)
        })
    }

    fn bind(&mut self, bind: Bind) -> Step {
        let prepared = self.statement(&bind.statement)?.clone();
        if !bind.portal.is_empty() && self.portals.contains_key(&*bind.portal) {
            let message = format!("cursor \"{}\" already exists", &*bind.portal);
            return Err(Error::new(DUPLICATE_CURSOR, message).into());
        }
        let n = bind.values.len();
        if n != prepared.params.len() {
            let message = format!(
                "bind message supplies {n} parameters, but prepared statement \"{}\" requires {}",
                &*bind.statement,
                prepared.params.len()
            );
            return Err(request::violation(message).into());
        }
        if !bind.formats.fits(n) {
            let n_formats = bind.formats.len();
            let message =
                format!("bind message has {n_formats} parameter formats but {n} parameters");
            return Err(request::violation(message).into());
        }
        let n_columns = prepared.columns.as_ref().map_or(0, |columns| columns.len());
        if !bind.results.fits(n_columns) {
            let n_formats = bind.results.len();
            let message = format!(
                "bind message has {n_formats} result formats but query has {n_columns} columns"
            );
            return Err(request::violation(message).into());
        }
        let zone = self.session.zone();
        let decode = |(idx, value): (usize, &Option<Bytes>)| {
            let Some(value) = value else { return Ok(Datum::Null) };
            let ty = &prepared.params[idx];
            if bind.formats.binary(idx) {
                return binary::parse(value, ty);
            }
            let value = std::str::from_utf8(value).map_err(|_| {
                let message = "invalid byte sequence for encoding \"UTF8\"";
                Error::new(state::INVALID_ENCODING, message)
                    .detail(format!("It is in the parameter ${}.", idx + 1))
            })?;
            text::parse(value, ty, &zone)
        };
        let params = bind.values.iter().enumerate().map(decode).collect::<Result<Vec<_>>>()?;
        if self.portals.len() >= self.n_portals_max {
            let message = format!("a connection may have {} portals", self.n_portals_max);
            return Err(Error::new(state::LIMIT_EXCEEDED, message).hint("Close some.").into());
        }
        let bytes = PORTAL_BYTES + bind.values.iter().flatten().map(Bytes::len).sum::<usize>();
        let loan = self.memory.borrow(if bind.portal.is_empty() { 0 } else { bytes });
        let loan = loan.map_err(|exhausted| no_memory("a portal", &exhausted))?;
        let (results, state) = (bind.results, PortalState::Bound);
        let portal = Portal { prepared, params, results, state, loan };
        self.portals.insert(bind.portal.to_string(), portal);
        reply::bind_complete(&mut self.pipe.output);
        Ok(())
    }

    fn describe(&mut self, target: Target, name: &str) -> Step {
        let (columns, formats) = match target {
            Target::Statement => {
                let prepared = self.statement(name)?;
                let (types, columns) = (prepared.params.clone(), prepared.columns.clone());
                let types = types.iter().map(|ty| ty.oid());
                reply::parameter_description(&mut self.pipe.output, types);
                (columns, Formats::default())
            }
            Target::Portal => {
                let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
                (portal.prepared.columns.clone(), portal.results.clone())
            }
        };
        match columns {
            Some(columns) => reply::row_description(&mut self.pipe.output, &columns, &formats),
            None => reply::no_data(&mut self.pipe.output),
        }
        Ok(())
    }

    async fn execute(&mut self, name: &str, n_rows_max: usize) -> Step {
        // Taken out while it runs, so that an error leaves nothing half sent behind.
        let mut portal = self.portals.remove(name).ok_or_else(|| no_portal(name))?;
        let state = std::mem::replace(&mut portal.state, PortalState::Done);
        let mut running = match state {
            PortalState::Done => {
                let message = format!("portal \"{name}\" cannot be run anymore");
                let error = Error::new(state::NOT_IN_PREREQUISITE_STATE, message);
                self.portals.insert(name.to_owned(), portal);
                return Err(error.into());
            }
            PortalState::Running(running) => running,
            PortalState::Bound => {
                let params = std::mem::take(&mut portal.params);
                let work = self.session.execute(&portal.prepared, params);
                match self.pipe.attend(work).await?? {
                    Outcome::Rows { columns, rows, tag } => Running::new(columns, rows, tag),
                    other => {
                        self.answer_without_rows(other).await?;
                        self.portals.insert(name.to_owned(), portal);
                        return Ok(());
                    }
                }
            }
        };
        let mut n_rows = 0;
        loop {
            let wanted = n_rows_max.saturating_sub(n_rows as usize);
            if wanted == 0 {
                // Its rows wait here, some of them made already.
                let borrowed = portal.loan.set(portal.loan.bytes().max(RUNNING_BYTES));
                borrowed.map_err(|exhausted| no_memory("a portal's rows", &exhausted))?;
                reply::portal_suspended(&mut self.pipe.output);
                portal.state = PortalState::Running(running);
                break;
            }
            match self.send_rows(&mut running, &portal.results, wanted).await? {
                Some(n) => n_rows += n,
                None => {
                    self.complete(&running.tag.tag(n_rows));
                    break;
                }
            }
        }
        self.portals.insert(name.to_owned(), portal);
        Ok(())
    }

    /// COPY … FROM STDIN: feeds what comes until the client ends it.
    async fn copy_in(&mut self, mut copy: Box<CopyIn>) -> Step {
        reply::copy_response(&mut self.pipe.output, b'G', copy.n_columns);
        self.pipe.flush().await?;
        loop {
            let next = tokio::select! {
                biased;
                error = copy.over() => Err(error),
                next = self.pipe.next() => Ok(next?),
            };
            let (tag, body) = match next {
                Ok(next) => next,
                Err(error) => {
                    self.session.copy_fail(copy, &error.message).await;
                    return Err(error.into());
                }
            };
            match Request::parse(tag, body).map_err(Gone::Refused)? {
                Request::CopyData(data) => {
                    if let Err(error) = self.pipe.attend(copy.data(&data)).await? {
                        let message = error.message.clone();
                        self.session.copy_fail(copy, &message).await;
                        return Err(error.into());
                    }
                }
                Request::CopyDone => {
                    let tag = self.pipe.attend(self.session.copy_end(copy)).await??;
                    self.complete(&tag);
                    return Ok(());
                }
                Request::CopyFail { reason } => {
                    return Err(self.session.copy_fail(copy, &reason).await.into());
                }
                Request::Flush | Request::Sync => {}
                Request::Terminate => return Err(Gone::Closed.into()),
                _ => {
                    let message = format!("unexpected message type {tag} during COPY from stdin");
                    self.session.copy_fail(copy, &message).await;
                    return Err(Gone::Refused(request::violation(message)).into());
                }
            }
        }
    }

    async fn copy_out(&mut self, mut copy: CopyOut) -> Step {
        reply::copy_response(&mut self.pipe.output, b'H', copy.n_columns);
        while let Some(lines) = self.pipe.attend(copy.lines.next()).await? {
            // A message for each line, as PostgreSQL sends them: clients take one for the other.
            for line in lines?.split_inclusive(|&byte| byte == b'\n') {
                reply::copy_data(&mut self.pipe.output, line);
            }
            self.pipe.flush_if_large().await?;
        }
        reply::copy_done(&mut self.pipe.output);
        self.complete(&format!("COPY {}", copy.n_rows.load(Ordering::Relaxed)));
        Ok(())
    }
}

/// The type that a client gives for a parameter: zero leaves it to us.
fn parameter_type(oid: u32) -> Result<Option<crate::types::Type>> {
    match oid {
        0 | 705 => Ok(None),
        oid => crate::types::Type::from_oid(oid).map(Some).ok_or_else(|| {
            Error::new(state::UNDEFINED_OBJECT, format!("type with OID {oid} does not exist"))
        }),
    }
}

/// What the client of a statement that panicked is told.
fn bug(panicked: &panics::Panicked) -> Error {
    Error::internal(format!("the statement met a bug: {}", panicked.message))
        .hint("Nothing else is affected. The node's log has the place.")
}

fn terminated() -> Error {
    let message = "terminating connection due to administrator command";
    Error::new(state::UNAVAILABLE, message)
}

fn no_portal(name: &str) -> Error {
    Error::new(INVALID_CURSOR_NAME, format!("portal \"{name}\" does not exist"))
}
