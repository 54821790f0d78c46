//! The PROXY protocol, versions 1 and 2 (HAProxy's specification of 2020): a proxy in front says in
//! the first bytes of a connection who its client is.
//!
//! ```text
//!   PROXY TCP4 203.0.113.7 192.0.2.1 40000 443\r\n GET / …
//! ```
//!
//! A listener expects it of every connection or of none: guessing would let clients say it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use tokio::io::{AsyncRead, AsyncReadExt};

const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";
/// Of version 1, with its end.
const LINE_BYTES_MAX: usize = 107;
/// Of version 2, behind its head: addresses, and more that a proxy may say.
const REST_BYTES_MAX: usize = 4096;

fn wrong(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the PROXY header: {reason}"))
}

/// Reads the header, and nothing behind it. None: the proxy speaks for itself, such as for its own
/// health checks.
pub async fn read(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let mut begin = [0; SIGNATURE.len()];
    stream.read_exact(&mut begin).await?;
    if begin == SIGNATURE {
        return version2(stream).await;
    }
    if !begin.starts_with(b"PROXY ") {
        return Err(wrong("there is none"));
    }
    let mut line = begin.to_vec();
    while !line.ends_with(b"\r\n") {
        if line.len() >= LINE_BYTES_MAX {
            return Err(wrong("its line has no end"));
        }
        line.push(stream.read_u8().await?);
    }
    let text = std::str::from_utf8(&line).ok().and_then(|text| text.strip_suffix("\r\n"));
    let words: Vec<&str> = text.unwrap_or_default().split(' ').collect();
    match words[..] {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), from, _, port, _] => {
            let address: Option<IpAddr> = from.parse().ok();
            let address = address.filter(|address| address.is_ipv4() == (family == "TCP4"));
            let (address, port) = (address.zip(port.parse().ok())).ok_or(wrong("no address"))?;
            Ok(Some(SocketAddr::new(address, port)))
        }
        _ => Err(wrong("it is not one")),
    }
}

async fn version2(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<SocketAddr>> {
    let [version, family] = [stream.read_u8().await?, stream.read_u8().await?];
    let n = usize::from(stream.read_u16().await?);
    if version >> 4 != 2 || n > REST_BYTES_MAX {
        return Err(wrong("another version, or too long"));
    }
    let mut rest = vec![0; n];
    stream.read_exact(&mut rest).await?;
    let port = |at: usize| Some(u16::from_be_bytes(rest.get(at..at + 2)?.try_into().ok()?));
    match (version & 15, family >> 4) {
        // LOCAL: a connection of the proxy's own.
        (0, _) => Ok(None),
        (1, 1) => {
            let address = rest.first_chunk::<4>().zip(port(8)).ok_or(wrong("it is cut"))?;
            Ok(Some(SocketAddr::new(Ipv4Addr::from(*address.0).into(), address.1)))
        }
        (1, 2) => {
            let address = rest.first_chunk::<16>().zip(port(32)).ok_or(wrong("it is cut"))?;
            Ok(Some(SocketAddr::new(Ipv6Addr::from(*address.0).into(), address.1)))
        }
        // No address that means something here.
        (1, _) => Ok(None),
        _ => Err(wrong("another command")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told(bytes: &[u8]) -> String {
        let mut bytes = bytes;
        match read(&mut bytes).await {
            Ok(Some(from)) => format!("{from} {:?}", String::from_utf8_lossy(bytes)),
            Ok(None) => format!("itself {:?}", String::from_utf8_lossy(bytes)),
            Err(_) => "refused".to_owned(),
        }
    }

    #[tokio::test]
    async fn a_header_says_who_its_client_is() {
        let two = |rest: &[u8]| [&SIGNATURE[..], rest].concat();
        for (bytes, expected) in [
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 80\r\nGET".to_vec(), "1.2.3.4:9 \"GET\""),
            (b"PROXY TCP6 ::1 ::2 9 80\r\nGET".to_vec(), "[::1]:9 \"GET\""),
            (b"PROXY UNKNOWN\r\nGET".to_vec(), "itself \"GET\""),
            (b"PROXY UNKNOWN a b c\r\nGET".to_vec(), "itself \"GET\""),
            (
                two(b"\x21\x11\0\x0c\x01\x02\x03\x04\x05\x06\x07\x08\0\x09\0\x50GET"),
                "1.2.3.4:9 \"GET\"",
            ),
            (
                two(b"\x21\x11\0\x0e\x01\x02\x03\x04\x05\x06\x07\x08\0\x09\0\x50xxGET"),
                "1.2.3.4:9 \"GET\"",
            ),
            (two(b"\x20\0\0\0GET"), "itself \"GET\""),
            (b"GET / HTTP/1.1\r\nhost: h\r\n\r\n".to_vec(), "refused"),
            (b"PROXY TCP4 ::1 ::2 9 80\r\nGET".to_vec(), "refused"),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 99999 80\r\n".to_vec(), "refused"),
            (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 8".to_vec(), "refused"),
            ([&b"PROXY TCP4 "[..], &[b'1'; 200]].concat(), "refused"),
            (two(b"\x21\x11\0\x04\x01\x02\x03\x04"), "refused"),
            (two(b"\x11\x11\0\0"), "refused"),
            (two(b"\x21\x11\xff\xff"), "refused"),
        ] {
            assert_eq!(told(&bytes).await, expected, "{}", String::from_utf8_lossy(&bytes));
        }
    }
}
