//! `atoll password`: sets a role's password through the door of the machine itself. Also how passwords are
//! read: from a file, the variable ATOLL_PASSWORD or the terminal, never from the command line, which
//! other users of the machine can see.

use super::{Result, client};
use base::Env;
use clap::Args;
use sql::wire::scram::Verifier;
use std::io::{BufRead, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

/// The variable that passwords may stand in.
pub const VARIABLE: &str = "ATOLL_PASSWORD";

#[derive(Args)]
pub struct Password {
    /// Whose password.
    role: String,
    /// Where the cluster of `atoll up`, or the node of `atoll node`, keeps its data.
    #[arg(long, env = "ATOLL_DATA", default_value = "atoll-data", value_name = "DIR")]
    data: PathBuf,
    /// Read it from a file; otherwise from ATOLL_PASSWORD, or from the terminal.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
}

impl Password {
    pub async fn run(self) -> Result<ExitCode> {
        let connection = client::connect(&std::path::absolute(&self.data)?).await?;
        let verifier = verifier(&Env::real(), self.password_file.as_deref())?;
        set(&connection, &self.role, &verifier).await?;
        println!("the role {:?} has a new password", self.role);
        Ok(ExitCode::SUCCESS)
    }
}

/// Only what cannot be used to log in leaves this process.
pub async fn set(
    connection: &tokio_postgres::Client,
    role: &str,
    verifier: &Verifier,
) -> Result<()> {
    let role = role.replace('"', "\"\"");
    let statement = format!("ALTER ROLE \"{role}\" PASSWORD '{verifier}'");
    connection.batch_execute(&statement).await.map_err(|error| client::explain(&error))?;
    Ok(())
}

/// The verifier of the password that the person gives.
pub fn verifier(env: &Env, file: Option<&Path>) -> Result<Verifier> {
    let password = match (file, std::env::var(VARIABLE)) {
        (Some(file), _) => {
            let text = std::fs::read_to_string(file)
                .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
            text.lines().next().unwrap_or_default().to_owned()
        }
        (None, Ok(password)) => password,
        (None, Err(_)) => ask()?,
    };
    if password.is_empty() {
        return Err("an empty password is none: nobody could log in with it".into());
    }
    let mut salt = [0; 16];
    salt[..8].copy_from_slice(&env.random().to_be_bytes());
    salt[8..].copy_from_slice(&env.random().to_be_bytes());
    Ok(Verifier::derive(&password, salt))
}

/// From the terminal, twice, without showing it; or one line of what is piped in.
fn ask() -> Result<String> {
    let stdin = std::io::stdin();
    let line = |prompt: &str| -> Result<String> {
        if stdin.is_terminal() {
            eprint!("{prompt}");
            std::io::stderr().flush()?;
        }
        let mut line = String::new();
        stdin.lock().read_line(&mut line)?;
        Ok(line.trim_end_matches(['\r', '\n']).to_owned())
    };
    if !stdin.is_terminal() {
        return line("");
    }
    let _shown_again = Hidden::begin()?;
    let first = line("Password: ")?;
    eprintln!();
    let second = line("Again: ")?;
    eprintln!();
    match first == second {
        true => Ok(first),
        false => Err("the two passwords differ".into()),
    }
}

/// While it lives the terminal does not show what is typed.
struct Hidden;

impl Hidden {
    fn begin() -> Result<Hidden> {
        let done = stty("-echo").map_err(|error| {
            format!("the terminal cannot hide the password ({error}): use --password-file")
        })?;
        match done {
            true => Ok(Hidden),
            false => Err("the terminal cannot hide the password: use --password-file".into()),
        }
    }
}

impl Drop for Hidden {
    fn drop(&mut self) {
        // There is nobody to tell if it fails; `reset` helps a person.
        stty("echo").ok();
    }
}

fn stty(word: &str) -> std::io::Result<bool> {
    Ok(Command::new("stty").arg(word).stdin(Stdio::inherit()).status()?.success())
}
