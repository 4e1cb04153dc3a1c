//! Which addresses a call may reach. A client names the address, so without this check it could make this server
//! call its neighbors: a database, a router, a cloud's metadata service.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// Why a host will never be called, if its text shows that.
pub(super) fn private(host: &str, allowed: &[String]) -> Option<String> {
    let (bare, is_allowed) = named(host, allowed);
    let lower = bare.trim_end_matches('.').to_ascii_lowercase();
    let is_here = lower == "localhost" || lower.ends_with(".localhost");
    let is_private = is_here || bare.parse().is_ok_and(|address| !is_public(address));
    (is_private && !is_allowed)
        .then(|| format!("{bare} is not a public address; the operator can allow it with --webhook-allow"))
}

/// The one address to connect to. The name is resolved here and only here, so that it cannot point
/// elsewhere when the connection is made; if any of its addresses is not public, none is called.
pub(super) async fn resolve(host: &str, port: u16, allowed: &[String]) -> Result<SocketAddr, String> {
    let (bare, is_allowed) = named(host, allowed);
    let found =
        tokio::net::lookup_host((bare, port)).await.map_err(|error| format!("`{host}` is not found: {error}"))?;
    let addresses: Vec<SocketAddr> = found.collect();
    if let Some(private) = addresses.iter().find(|address| !is_allowed && !is_public(address.ip())) {
        return Err(format!("{} is not a public address; allow `{bare}` with --webhook-allow", private.ip()));
    }
    addresses.first().copied().ok_or_else(|| format!("`{host}` has no address"))
}

/// A host without the brackets of a URL, and whether the operator allows it.
fn named<'a>(host: &'a str, allowed: &[String]) -> (&'a str, bool) {
    let bare = host.trim_start_matches('[').trim_end_matches(']');
    (bare, allowed.iter().any(|name| name.eq_ignore_ascii_case(bare)))
}

/// Whether an address is on the public internet.
fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let is_special = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_multicast()
        || address.is_broadcast()
        || address.is_documentation();
    // This network; shared by carriers (RFC 6598); protocol assignments; relays of 6to4; benchmarks; reserved.
    let is_other = a == 0
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (18..20).contains(&b))
        || a >= 240;
    !is_special && !is_other
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    // An address that maps an IPv4 address is judged by that one.
    if let Some(inner) = address.to_ipv4_mapped() {
        return is_public_v4(inner);
    }
    let embedded = |high: u16, low: u16| Ipv4Addr::from((u32::from(high) << 16) | u32::from(low));
    match segments {
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => is_public_v4(embedded(high, low)),
        [0x2002, high, low, ..] => is_public_v4(embedded(high, low)),
        // Global unicast, without protocol assignments (Teredo, benchmarks, identifiers) and documentation.
        [0x2001, second, ..] if second < 0x200 || second == 0xdb8 => false,
        [0x3fff, second, ..] if second < 0x1000 => false,
        [first, ..] => (0x2000..0x4000).contains(&first),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_internet_at_large_is_public() {
        for public in
            ["93.184.216.34", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
        {
            assert!(is_public(public.parse().expect("an address")), "{public}");
        }
        for private in [
            "127.0.0.1",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
            "0.0.0.0",
            "224.0.0.1",
            "255.255.255.255",
            "198.18.0.1",
            "192.0.0.8",
            "240.0.0.1",
            "::1",
            "::",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "2001:db8::1",
            "::7f00:1",
        ] {
            assert!(!is_public(private.parse().expect("an address")), "{private}");
        }
    }

    #[tokio::test]
    async fn a_name_is_resolved_once_and_a_private_one_needs_leave() {
        for host in ["127.0.0.1", "[::1]", "localhost"] {
            let refused = resolve(host, 80, &[]).await.expect_err("refused");
            assert!(refused.contains("not a public address"), "{refused}");
        }
        let allowed = resolve("127.0.0.1", 80, &["127.0.0.1".into()]).await;
        assert_eq!(allowed, Ok(SocketAddr::from(([127, 0, 0, 1], 80))));
    }
}
