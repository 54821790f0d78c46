//! Which servers of a large zone one gateway uses, so that not everyone holds connections to
//! everyone: weighted rendezvous hashing. Each gateway draws a score for each server from its own
//! number and the server's address; the highest scores are its subset. A server that comes or
//! goes changes at most one place of each subset, and a server of twice the weight is in twice as
//! many.

use super::settings::ServerSpec;

/// The `n` servers that the gateway numbered `gateway` uses, in the order of `servers`.
pub fn subset(gateway: u64, servers: Vec<ServerSpec>, n: usize) -> Vec<ServerSpec> {
    if servers.len() <= n {
        return servers;
    }
    let mut scored: Vec<(f64, usize)> =
        servers.iter().enumerate().map(|(idx, server)| (score(gateway, server), idx)).collect();
    scored.sort_by(|one, other| other.0.total_cmp(&one.0));
    let mut chosen: Vec<usize> = scored.into_iter().take(n).map(|(_, idx)| idx).collect();
    chosen.sort_unstable();
    chosen.into_iter().map(|idx| servers[idx].clone()).collect()
}

/// −weight / ln(u) for a u between 0 and 1 that the pair draws: the largest of several is each
/// one's with a probability in proportion to its weight.
fn score(gateway: u64, server: &ServerSpec) -> f64 {
    let mut hash = mix(gateway);
    for byte in server.address.to_string().bytes() {
        hash = mix(hash ^ u64::from(byte));
    }
    let u = ((hash >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -server.weight / u.ln()
}

/// SplitMix64's finaliser.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ (value >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ (value >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ (value >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fleet(n: u16) -> Vec<ServerSpec> {
        let spec = |port| ServerSpec {
            address: ([10, 0, 0, 1], port).into(),
            zone: "a".into(),
            weight: if port <= 10 { 2.0 } else { 1.0 },
        };
        (1..=n).map(spec).collect()
    }

    #[test]
    fn a_server_of_twice_the_weight_is_in_about_twice_as_many_subsets() {
        let mut heavy = 0;
        let mut light = 0;
        for gateway in 0..2_000 {
            for server in subset(gateway, fleet(110), 5) {
                if server.weight > 1.0 { heavy += 1 } else { light += 1 }
            }
        }
        let ratio = f64::from(heavy) / 10.0 / (f64::from(light) / 100.0);
        assert!((1.7..2.3).contains(&ratio), "{ratio}");
    }

    #[test]
    fn one_server_more_changes_at_most_one_place() {
        for gateway in 0..200 {
            let before = subset(gateway, fleet(50), 8);
            let after = subset(gateway, fleet(51), 8);
            let kept = before.iter().filter(|server| after.contains(server)).count();
            assert!(kept >= 7, "gateway {gateway} keeps {kept}");
        }
    }
}
