//! How a connection begins: encryption, the startup message, authentication, the first settings.

use super::pipe::{Flow, Gone, Pipe, shutting_down};
use super::send_notices;
use crate::error::{Error, Result, state};
use crate::session::Session;
use crate::wire::access::{Method, Who};
use crate::wire::request;
use crate::wire::scram::{self, Binding, Exchange, Verifier};
use crate::wire::{Place, Server, reply};
use std::sync::Arc;
use tokio::io::AsyncWriteExt;

/// The first byte of a TLS handshake.
const TLS_HANDSHAKE: u8 = 0x16;

/// The settings that a client is told about as they change.
const REPORTED: [&str; 11] = [
    "application_name",
    "client_encoding",
    "DateStyle",
    "integer_datetimes",
    "IntervalStyle",
    "is_superuser",
    "server_encoding",
    "server_version",
    "session_authorization",
    "standard_conforming_strings",
    "TimeZone",
];

/// Startup and authentication; none for a cancel request, which is done then.
pub async fn open(server: &Arc<Server>, pipe: &mut Pipe, place: &Place) -> Flow<Option<Session>> {
    let settings = loop {
        let (code, body) = loop {
            // The length of no message begins like this: it would be larger than any.
            if pipe.input.first() == Some(&TLS_HANDSHAKE)
                && pipe.channel.is_none()
                && let Some(tls) = &server.tls
            {
                pipe.encrypt(tls, true).await?;
            }
            match request::split_startup(&mut pipe.input).map_err(Gone::Refused)? {
                Some(message) => break message,
                None => pipe.read().await?,
            }
        };
        match code {
            request::SSL_REQUEST => match &server.tls {
                Some(tls) if pipe.channel.is_none() => {
                    // Bytes sent along in the clear could be smuggled in as if they were encrypted.
                    if !pipe.input.is_empty() {
                        let message = "received unencrypted data after SSL request";
                        return Err(Gone::Refused(request::violation(message)));
                    }
                    pipe.stream.write_all(b"S").await?;
                    pipe.stream.flush().await?;
                    pipe.encrypt(tls, false).await?;
                }
                _ => {
                    pipe.stream.write_all(b"N").await?;
                    pipe.stream.flush().await?;
                }
            },
            request::GSS_REQUEST => {
                pipe.stream.write_all(b"N").await?;
                pipe.stream.flush().await?;
            }
            request::CANCEL_REQUEST => {
                let (pid, secret) = request::cancel_key(body).map_err(Gone::Refused)?;
                server.engine.cancel(pid.cast_signed(), secret.cast_signed());
                return Ok(None);
            }
            code if code >> 16 == 3 => {
                let settings = request::startup_settings(body).map_err(Gone::Refused)?;
                let unknown: Vec<&str> = settings
                    .iter()
                    .map(|(name, _)| &**name)
                    .filter(|name| name.starts_with("_pq_."))
                    .collect();
                if code & 0xffff > 0 || !unknown.is_empty() {
                    reply::negotiate_version(&mut pipe.output, &unknown);
                }
                break settings;
            }
            code => {
                let (major, minor) = (code >> 16, code & 0xffff);
                let message = format!(
                    "unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.0"
                );
                return Err(Gone::Refused(Error::new(state::FEATURE_NOT_SUPPORTED, message)));
            }
        }
    };
    // Only now: whoever cannot get in must still be able to cancel and to be told why.
    place.check().map_err(Gone::Refused)?;
    if *pipe.shutdown.borrow() {
        return Err(Gone::Refused(shutting_down()));
    }
    let find = |wanted: &str| settings.iter().find(|(name, _)| &**name == wanted);
    let user = match find("user") {
        Some((_, user)) if !user.is_empty() => user.to_string(),
        _ => {
            let message = "no PostgreSQL user name specified in startup packet";
            return Err(Gone::Refused(Error::new(state::INVALID_AUTHORIZATION, message)));
        }
    };
    let database = match find("database") {
        Some((_, database)) if !database.is_empty() => database.to_string(),
        _ => user.clone(),
    };
    authenticate(server, pipe, &user, &database).await?;
    let opened = server.engine.session(&user, &database).await;
    let mut session = opened.map_err(Gone::Refused)?;
    configure(&mut session, &settings).map_err(Gone::Refused)?;

    let out = &mut pipe.output;
    for name in REPORTED {
        if let Some(value) = session.setting(name) {
            reply::parameter_status(out, name, &value);
        }
    }
    let (pid, secret) = session.pid();
    reply::backend_key(out, pid.cast_unsigned(), secret.cast_unsigned());
    send_notices(&mut session, out);
    reply::ready(out, session.status().letter());
    pipe.flush().await?;
    Ok(Some(session))
}

/// Applies what a startup message sets, `options=-c name=value …` included.
fn configure(session: &mut Session, settings: &[(request::Text, request::Text)]) -> Result<()> {
    for (name, value) in settings {
        match &**name {
            "user" | "database" | "replication" => {}
            name if name.starts_with("_pq_.") => {}
            "options" => {
                for (name, value) in command_line_settings(value)? {
                    session.set_at_start(&name, &value)?;
                }
            }
            name => session.set_at_start(name, value)?,
        }
    }
    Ok(())
}

/// Reads `-c name=value`, `-cname=value` and `--name=value`; a backslash keeps the next character.
fn command_line_settings(options: &str) -> Result<Vec<(String, String)>> {
    let mut words: Vec<String> = Vec::new();
    let mut chars = options.chars();
    let mut in_word = false;
    while let Some(next) = chars.next() {
        if next.is_whitespace() {
            in_word = false;
            continue;
        }
        let kept = if next == '\\' { chars.next().unwrap_or('\\') } else { next };
        if !in_word {
            words.push(String::new());
            in_word = true;
        }
        if let Some(word) = words.last_mut() {
            word.push(kept);
        }
    }
    let bad = |word: &str| {
        let message = format!("invalid command-line argument for server process: {word}");
        Error::new(state::SYNTAX_ERROR, message)
    };
    let mut settings = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let setting = match word.strip_prefix("-c") {
            Some("") => words.next().ok_or_else(|| bad(&word))?,
            Some(setting) => setting.to_owned(),
            None => word.strip_prefix("--").ok_or_else(|| bad(&word))?.replace('-', "_"),
        };
        let (name, value) = setting.split_once('=').ok_or_else(|| bad(&setting))?;
        settings.push((name.trim().to_owned(), value.to_owned()));
    }
    Ok(settings)
}

async fn authenticate(server: &Server, pipe: &mut Pipe, name: &str, database: &str) -> Flow<()> {
    let is_encrypted = pipe.channel.is_some();
    let who = Who { address: pipe.from, database, role: name, is_encrypted };
    let method = server.access.judge(&who).map_err(Gone::Refused)?;
    let user = server.engine.role(name).await.map_err(Gone::Refused)?;
    if method == Method::Scram {
        // A password is good until its time has come.
        let now_us = pipe.env.wall_us();
        let valid =
            user.as_ref().filter(|user| user.valid_until_us.is_none_or(|until| now_us <= until));
        let verifier = valid.and_then(|user| user.verifier.as_deref());
        let verifier = match verifier.and_then(Verifier::parse) {
            Some(verifier) => verifier,
            // Also for a role without a password: who it is that cannot get in is not told.
            None => {
                let secret = server.engine.secret().await.map_err(Gone::Refused)?;
                Verifier::impossible(name, &secret)
            }
        };
        prove(pipe, name, verifier).await?;
    }
    match user {
        Some(user) if user.login => {}
        Some(_) => {
            let message = format!("role \"{name}\" is not permitted to log in");
            return Err(Gone::Refused(Error::new(state::INVALID_AUTHORIZATION, message)));
        }
        None => {
            let message = format!("role \"{name}\" does not exist");
            return Err(Gone::Refused(
                Error::new(state::INVALID_AUTHORIZATION, message)
                    .hint("A user who may log in makes it with CREATE USER."),
            ));
        }
    }
    reply::authentication_ok(&mut pipe.output);
    Ok(())
}

/// The client proves that it knows the password of `verifier`.
async fn prove(pipe: &mut Pipe, name: &str, verifier: Verifier) -> Flow<()> {
    let end_point = pipe.channel.as_ref().and_then(|channel| channel.end_point.clone());
    reply::authentication_sasl(&mut pipe.output, scram::mechanisms(end_point.is_some()));
    pipe.flush().await?;
    let body = pipe.password().await?;
    let malformed = || Gone::Refused(request::violation("malformed SASLInitialResponse"));
    let end = body.iter().position(|&byte| byte == 0).ok_or_else(malformed)?;
    let binding = Binding::chosen(&body[..end], end_point).map_err(Gone::Refused)?;
    let first = body.get(end + 5..).ok_or_else(malformed)?;
    let nonce = format!("{:016x}{:016x}", pipe.env.random(), pipe.env.random());
    let begun = Exchange::begin(verifier, binding, first, &nonce);
    let (exchange, answer) = begun.map_err(Gone::Refused)?;
    reply::authentication_sasl_data(&mut pipe.output, 11, answer.as_bytes());
    pipe.flush().await?;
    let last = pipe.password().await?;
    let proof = exchange.finish(&last).map_err(Gone::Refused)?.ok_or_else(|| {
        let message = format!("password authentication failed for user \"{name}\"");
        Gone::Refused(Error::new(state::INVALID_PASSWORD, message))
    })?;
    reply::authentication_sasl_data(&mut pipe.output, 12, proof.as_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn startup_options_are_read_as_a_command_line() {
        let read = |options| command_line_settings(options).unwrap();
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        assert_eq!(read("-c a=1  -cb=2"), [pair("a", "1"), pair("b", "2")]);
        assert_eq!(read("--search-path=x\\ y"), [pair("search_path", "x y")]);
        assert!(command_line_settings("-x").is_err() && command_line_settings("-c").is_err());
    }
}
