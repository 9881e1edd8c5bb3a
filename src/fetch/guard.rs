//! Which addresses may be fetched: an address in a text that somebody else wrote must not lead into our own network.
//!
//! A host is what the `url` crate made of it, so that `0x7f.1`, `2130706433` and `127.0.0.1` are the same here. A name
//! proves nothing: what it resolves to is checked where the connection is made (`names`).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};
use url::{Host, Url};

/// A longer address is a mistake or worse.
pub const URL_BYTES_MAX: usize = 4096;

const fn v4(a: u8, b: u8, c: u8, d: u8, length: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length)
}

const fn v6(a: u16, b: u16, length: u8) -> Ipv6Net {
    Ipv6Net::new_assert(Ipv6Addr::new(a, b, 0, 0, 0, 0, 0, 0), length)
}

/// Nets of IPv4 that are nobody's public server, after the IANA registry of special purpose addresses.
const BLOCKED_V4: [Ipv4Net; 16] = [
    v4(0, 0, 0, 0, 8),        // this network
    v4(10, 0, 0, 0, 8),       // private
    v4(100, 64, 0, 0, 10),    // shared by a carrier's customers
    v4(127, 0, 0, 0, 8),      // this machine
    v4(169, 254, 0, 0, 16),   // link-local; clouds keep their keys at 169.254.169.254
    v4(172, 16, 0, 0, 12),    // private
    v4(192, 0, 0, 0, 24),     // protocols
    v4(192, 0, 2, 0, 24),     // documentation
    v4(192, 88, 99, 0, 24),   // relays of 6to4
    v4(192, 168, 0, 0, 16),   // private
    v4(198, 18, 0, 0, 15),    // benchmarks
    v4(198, 51, 100, 0, 24),  // documentation
    v4(203, 0, 113, 0, 24),   // documentation
    v4(224, 0, 0, 0, 4),      // multicast
    v4(240, 0, 0, 0, 4),      // reserved, broadcast
    v4(168, 63, 129, 16, 32), // the inner side of a large cloud, though it looks public
];

/// The only part of IPv6 that is handed out. Outside it lie `::1`, `fc00::/7`, `fe80::/10`, `ff00::/8`, the IPv4
/// addresses written as IPv6 (`::ffff:0:0/96`) and those behind a translator (`64:ff9b::/96`).
const GLOBAL_V6: Ipv6Net = v6(0x2000, 0, 3);

/// Nets within that part that are no public server all the same.
const BLOCKED_V6: [Ipv6Net; 4] = [
    v6(0x2001, 0, 23),     // protocols; Teredo, which hides an IPv4 address
    v6(0x2001, 0xdb8, 32), // documentation
    v6(0x2002, 0, 16),     // 6to4, which hides an IPv4 address
    v6(0x3fff, 0, 20),     // documentation
];

/// Whether anybody in the world may have this address, and we no nearer to it than they are.
pub fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => !BLOCKED_V4.iter().any(|net| net.contains(&ip)),
        IpAddr::V6(ip) => GLOBAL_V6.contains(&ip) && !BLOCKED_V6.iter().any(|net| net.contains(&ip)),
    }
}

/// Why an address is not fetched. None of these texts holds a path, a query or a user.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotAllowed {
    /// Something else than http and https.
    #[error("only http and https addresses are fetched")]
    Scheme,
    /// A user or a password stands in it.
    #[error("the address has a user or a password in it")]
    User,
    /// It is no address, has no host, or is too long.
    #[error("it is no address that can be fetched")]
    Address,
    /// Neither 80 nor 443, nor named with its host.
    #[error("port {0} is not allowed; fetch.allow_hosts may name \"host:port\"")]
    Port(u16),
    /// The host is, or its name leads to, an address that is not public.
    #[error(
        "the host is no public address, or its name leads to one that is not; fetch.allow_hosts may name it"
    )]
    NotPublic(IpAddr),
    /// A redirect from https to http.
    #[error("a redirect from https to http is not followed")]
    Downgrade,
    /// More redirects one after the other than are followed.
    #[error("there are too many redirects")]
    Redirects,
    /// A redirect that does not say where to.
    #[error("a redirect leads nowhere")]
    Nowhere,
}

/// How an allowed address is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    /// Every address that the name has must be public.
    Public,
    /// The operator named the host: wherever it leads.
    Named,
}

/// A host that the operator vouches for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Allowed {
    host: Host,
    /// None: 80 and 443.
    port: Option<u16>,
}

/// Decides about addresses. By default only public hosts on ports 80 and 443 are allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Guard {
    allowed: Vec<Allowed>,
}

/// An entry of `fetch.allow_hosts` that is no host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BadHost(pub String);

impl fmt::Display for BadHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} is no host, nor host:port", self.0)
    }
}

impl std::error::Error for BadHost {}

impl Guard {
    /// Allows, besides all that is public, these hosts: `files.example`, `10.0.0.5:8080`, `[::1]:8080`. An entry with
    /// a port allows that port only, one without 80 and 443. The host is compared as an address names it: an entry
    /// `10.0.0.5` does not allow a name that leads there.
    pub fn new<S: AsRef<str>>(allow_hosts: &[S]) -> Result<Self, BadHost> {
        let allowed = allow_hosts.iter().map(|entry| {
            let entry = entry.as_ref().trim();
            read_entry(entry).ok_or_else(|| BadHost(entry.to_owned()))
        });
        Ok(Self { allowed: allowed.collect::<Result<_, _>>()? })
    }

    /// Whether the address may be fetched, as far as it tells itself: a name may yet turn out not to.
    pub fn check(&self, url: &Url) -> Result<(), NotAllowed> {
        self.way(url).map(drop)
    }

    pub(super) fn way(&self, url: &Url) -> Result<Way, NotAllowed> {
        if !matches!(url.scheme(), "http" | "https") {
            return Err(NotAllowed::Scheme);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(NotAllowed::User);
        }
        let (Some(host), Some(port)) = (url.host().and_then(plain), url.port_or_known_default()) else {
            return Err(NotAllowed::Address);
        };
        if url.as_str().len() > URL_BYTES_MAX {
            return Err(NotAllowed::Address);
        }
        let usual = matches!(port, 80 | 443);
        let named = self
            .allowed
            .iter()
            .any(|entry| entry.host == host && entry.port.map_or(usual, |allowed| allowed == port));
        if named {
            return Ok(Way::Named);
        }
        match host {
            Host::Ipv4(ip) if !is_public(ip.into()) => Err(NotAllowed::NotPublic(ip.into())),
            Host::Ipv6(ip) if !is_public(ip.into()) => Err(NotAllowed::NotPublic(ip.into())),
            Host::Ipv4(_) | Host::Ipv6(_) | Host::Domain(_) if usual => Ok(Way::Public),
            Host::Ipv4(_) | Host::Ipv6(_) | Host::Domain(_) => Err(NotAllowed::Port(port)),
        }
    }
}

/// The host without the dot that a name may end with.
fn plain<S: AsRef<str>>(host: Host<S>) -> Option<Host> {
    match host {
        Host::Domain(name) => {
            let name = name.as_ref().trim_end_matches('.').to_ascii_lowercase();
            (!name.is_empty()).then_some(Host::Domain(name))
        }
        Host::Ipv4(ip) => Some(Host::Ipv4(ip)),
        Host::Ipv6(ip) => Some(Host::Ipv6(ip)),
    }
}

fn read_entry(entry: &str) -> Option<Allowed> {
    // A star would be taken for a letter, and then match nothing.
    if entry.contains('*') {
        return None;
    }
    if let Ok(ip) = entry.parse::<Ipv6Addr>() {
        return Some(Allowed { host: Host::Ipv6(ip), port: None });
    }
    let (host, port) = match entry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port.parse().ok()?)),
        Some(_) | None => (entry, None),
    };
    Some(Allowed { host: plain(Host::parse(host).ok()?)?, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What each address gets, where `files.example`, `10.0.0.5:8080`, `[fd00::5]` and `bücher.example:8443` are
    /// allowed.
    fn verdict(text: &str) -> Result<Way, NotAllowed> {
        let allowed = ["files.example", "10.0.0.5:8080", "[fd00::5]", "Bücher.example.:8443"];
        let url = Url::parse(text).map_err(|_| NotAllowed::Address)?;
        Guard::new(&allowed).unwrap().way(&url)
    }

    fn private(ip: &str) -> Result<Way, NotAllowed> {
        Err(NotAllowed::NotPublic(ip.parse().unwrap()))
    }

    #[test]
    fn each_address_gets_what_the_table_says() {
        use NotAllowed as No;
        let table: Vec<(&str, Result<Way, NotAllowed>)> = vec![
            ("http://example.com/", Ok(Way::Public)),
            ("https://example.com/a?b=c", Ok(Way::Public)),
            ("https://example.com:443/", Ok(Way::Public)),
            ("http://example.com:443/", Ok(Way::Public)),
            ("https://example.com:80/", Ok(Way::Public)),
            ("https://example.com:8443/", Err(No::Port(8443))),
            ("http://example.com:22/", Err(No::Port(22))),
            ("http://example.com:0/", Err(No::Port(0))),
            ("http://example.com:99999/", Err(No::Address)),
            ("http://EXAMPLE.com./", Ok(Way::Public)),
            ("http://bücher.example/", Ok(Way::Public)),
            ("https://xn--bcher-kva.example:8443/", Ok(Way::Named)),
            ("https://BÜCHER.example.:8443/", Ok(Way::Named)),
            ("https://bücher.example:8444/", Err(No::Port(8444))),
            // The host's form does not matter.
            ("http://127.0.0.1/", private("127.0.0.1")),
            ("http://127.1/", private("127.0.0.1")),
            ("http://127.0.0.1./", private("127.0.0.1")),
            ("http://2130706433/", private("127.0.0.1")),
            ("http://0x7f000001/", private("127.0.0.1")),
            ("http://0x7f.0.0.1/", private("127.0.0.1")),
            ("http://0177.0.0.1/", private("127.0.0.1")),
            ("http://017700000001/", private("127.0.0.1")),
            ("http://%31%32%37.0.0.1/", private("127.0.0.1")),
            ("http://127。0。0。1/", private("127.0.0.1")),
            ("http://①②⑦.0.0.1/", private("127.0.0.1")),
            ("http:\\\\127.0.0.1\\", private("127.0.0.1")),
            ("http:127.0.0.1", private("127.0.0.1")),
            ("http://127.0.0.1\t/", private("127.0.0.1")),
            ("http://0/", private("0.0.0.0")),
            ("http://0.0.0.0/", private("0.0.0.0")),
            ("http://10.1.2.3/", private("10.1.2.3")),
            ("http://100.64.0.1/", private("100.64.0.1")),
            ("http://169.254.169.254/latest/meta-data/", private("169.254.169.254")),
            ("http://0xa9fea9fe/", private("169.254.169.254")),
            ("http://168.63.129.16/", private("168.63.129.16")),
            ("http://172.16.0.1/", private("172.16.0.1")),
            ("http://172.32.0.1/", Ok(Way::Public)),
            ("http://192.0.0.8/", private("192.0.0.8")),
            ("http://192.0.2.1/", private("192.0.2.1")),
            ("http://192.88.99.1/", private("192.88.99.1")),
            ("http://192.168.1.1/", private("192.168.1.1")),
            ("http://198.19.0.1/", private("198.19.0.1")),
            ("http://198.51.100.1/", private("198.51.100.1")),
            ("http://203.0.113.1/", private("203.0.113.1")),
            ("http://224.0.0.1/", private("224.0.0.1")),
            ("http://255.255.255.255/", private("255.255.255.255")),
            ("http://8.8.8.8/", Ok(Way::Public)),
            ("http://8.8.8.8:53/", Err(No::Port(53))),
            ("http://256.0.0.1/", Err(No::Address)),
            ("http://[::]/", private("::")),
            ("http://[::1]/", private("::1")),
            ("http://[0:0:0:0:0:0:0:1]/", private("::1")),
            ("http://[::ffff:127.0.0.1]/", private("::ffff:127.0.0.1")),
            ("http://[::ffff:7f00:1]/", private("::ffff:127.0.0.1")),
            ("http://[::ffff:8.8.8.8]/", private("::ffff:8.8.8.8")),
            ("http://[::127.0.0.1]/", private("::127.0.0.1")),
            ("http://[64:ff9b::7f00:1]/", private("64:ff9b::7f00:1")),
            ("http://[64:ff9b:1::1]/", private("64:ff9b:1::1")),
            ("http://[2002:7f00:1::]/", private("2002:7f00:1::")),
            ("http://[2001:0:7f00:1::]/", private("2001:0:7f00:1::")),
            ("http://[2001:db8::1]/", private("2001:db8::1")),
            ("http://[3fff::1]/", private("3fff::1")),
            ("http://[fc00::1]/", private("fc00::1")),
            ("http://[fd00::6]/", private("fd00::6")),
            ("http://[fe80::1]/", private("fe80::1")),
            ("http://[fe80::1%25eth0]/", Err(No::Address)),
            ("http://[ff02::1]/", private("ff02::1")),
            ("http://[2606:4700:4700::1111]/", Ok(Way::Public)),
            // What the operator named, as it was named.
            ("http://files.example/", Ok(Way::Named)),
            ("https://FILES.example./", Ok(Way::Named)),
            ("http://files.example:8080/", Err(No::Port(8080))),
            ("http://files.example.org/", Ok(Way::Public)),
            ("http://notfiles.example/", Ok(Way::Public)),
            ("http://10.0.0.5:8080/", Ok(Way::Named)),
            ("http://0xa.5:8080/", Ok(Way::Named)),
            ("http://10.0.0.5/", private("10.0.0.5")),
            ("http://10.0.0.5:8081/", private("10.0.0.5")),
            ("http://[fd00:0::5]/", Ok(Way::Named)),
            // Users, and what looks like them.
            ("http://user@example.com/", Err(No::User)),
            ("http://user:secret@example.com/", Err(No::User)),
            ("http://:secret@example.com/", Err(No::User)),
            ("http://example.com@127.0.0.1/", Err(No::User)),
            ("http://example.com#@127.0.0.1/", Ok(Way::Public)),
            ("http://127.0.0.1#@example.com/", private("127.0.0.1")),
            ("http://127.0.0.1\\@example.com/", private("127.0.0.1")),
            // What is no web address.
            ("ftp://example.com/", Err(No::Scheme)),
            ("file:///etc/passwd", Err(No::Scheme)),
            ("gopher://example.com/", Err(No::Scheme)),
            ("data:text/plain,hello", Err(No::Scheme)),
            ("javascript:alert(1)", Err(No::Scheme)),
            ("http:///", Err(No::Address)),
            ("http://exa mple.com/", Err(No::Address)),
            ("http://./", Err(No::Address)),
            ("//example.com/", Err(No::Address)),
            ("example.com", Err(No::Address)),
        ];
        assert!(table.len() >= 60);
        for (text, expected) in table {
            assert_eq!(verdict(text), expected, "{text}");
        }
        assert_eq!(verdict(&format!("http://example.com/{}", "a".repeat(4096))), Err(No::Address));
    }

    #[test]
    fn the_first_and_last_address_of_each_blocked_net_is_blocked_and_their_neighbours_are_not() {
        for net in BLOCKED_V4 {
            let (first, last) = (u32::from(net.network()), u32::from(net.broadcast()));
            assert!(!is_public(Ipv4Addr::from(first).into()) && !is_public(Ipv4Addr::from(last).into()));
            let inside = |ip: u32| BLOCKED_V4.iter().any(|net| net.contains(&Ipv4Addr::from(ip)));
            for neighbour in [first.checked_sub(1), last.checked_add(1)].into_iter().flatten() {
                assert_eq!(is_public(Ipv4Addr::from(neighbour).into()), !inside(neighbour), "{net}");
            }
        }
        for net in BLOCKED_V6 {
            assert!(!is_public(net.network().into()) && !is_public(net.broadcast().into()), "{net}");
            let next = Ipv6Addr::from(u128::from(net.broadcast()) + 1);
            assert!(is_public(next.into()) || BLOCKED_V6.iter().any(|net| net.contains(&next)), "{next}");
        }
    }

    #[test]
    fn an_entry_that_is_no_host_is_told() {
        for entry in ["", ".", "a b", "host:", "host:x", "host:70000", "[::1", "http://a", "a/b", "*.example"]
        {
            assert!(Guard::new(&[entry]).is_err(), "{entry}");
        }
        for entry in ["localhost", "::1", "[::1]:80", "10.0.0.5", "a-b.example:1"] {
            assert!(Guard::new(&[entry]).is_ok(), "{entry}");
        }
    }
}
