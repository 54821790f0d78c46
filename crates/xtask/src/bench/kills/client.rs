//! The part of PostgreSQL's protocol that a probe needs: connect without a password, send a
//! statement, read to its end. A process of its own for each statement would cost more than what is
//! measured.

use std::io::{Error, ErrorKind, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

const PROTOCOL: u32 = 3 << 16;
/// Nothing that a probe asks for has longer answers.
const MESSAGE_BYTES_MAX: usize = 1 << 20;

pub struct Client {
    stream: TcpStream,
}

impl Client {
    /// `patience`: for the connection, and for each answer.
    pub fn connect(port: u16, patience: Duration) -> Result<Client> {
        let at = SocketAddr::from(([127, 0, 0, 1], port));
        let stream = TcpStream::connect_timeout(&at, patience)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(patience))?;
        let mut client = Client { stream };
        let mut hello = PROTOCOL.to_be_bytes().to_vec();
        hello.extend_from_slice(b"user\0atoll\0database\0atoll\0\0");
        client.send(None, &hello)?;
        client.read_to_end()?;
        Ok(client)
    }

    /// Runs one statement; the first column of its first row, as text, if there is one.
    pub fn run(&mut self, statement: &str) -> Result<Option<String>> {
        let mut text = statement.as_bytes().to_vec();
        text.push(0);
        self.send(Some(b'Q'), &text)?;
        self.read_to_end()
    }

    fn send(&mut self, kind: Option<u8>, payload: &[u8]) -> Result<()> {
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&(payload.len() as u32 + 4).to_be_bytes());
        message.extend_from_slice(payload);
        self.stream.write_all(&message)
    }

    /// Until the server is ready for the next statement.
    fn read_to_end(&mut self) -> Result<Option<String>> {
        let mut first = None;
        let mut failed = None;
        loop {
            let mut head = [0; 5];
            self.stream.read_exact(&mut head)?;
            let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
            let length = length.saturating_sub(4);
            if length > MESSAGE_BYTES_MAX {
                return Err(Error::new(ErrorKind::InvalidData, "a message is too long"));
            }
            let mut payload = vec![0; length];
            self.stream.read_exact(&mut payload)?;
            match head[0] {
                b'E' => failed = Some(String::from_utf8_lossy(&payload).replace('\0', " ")),
                b'D' if first.is_none() => first = column(&payload),
                b'Z' => return failed.map_or(Ok(first), |error| Err(Error::other(error))),
                _ => {}
            }
        }
    }
}

/// A row is a count of columns, then each column's length and text.
fn column(row: &[u8]) -> Option<String> {
    let length = row.get(2..6)?;
    let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
    Some(String::from_utf8_lossy(row.get(6..6 + length)?).into_owned())
}
