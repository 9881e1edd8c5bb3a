//! From a host's name to the addresses that may be connected to.
//!
//! The check stands where the connection is made: a name that leads elsewhere a moment later is checked again.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use super::guard::{NotAllowed, is_public};

/// So many addresses of a name are tried; all that it has are checked.
const ADDRESSES_MAX: usize = 16;

/// Tells what addresses a name has.
pub trait Names: Send + Sync + 'static {
    /// All of them, in the order in which they are to be tried.
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>>;
}

/// The machine's own resolver.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNames;

impl Names for SystemNames {
    fn lookup(&self, host: &str) -> BoxFuture<'static, io::Result<Vec<IpAddr>>> {
        let host = host.to_owned();
        async move { Ok(tokio::net::lookup_host((host, 0)).await?.map(|address| address.ip()).collect()) }
            .boxed()
    }
}

/// The resolver of one client.
pub(super) struct Checked {
    pub names: Arc<dyn Names>,
    /// Whether an address that is not public is refused.
    pub public_only: bool,
}

impl Resolve for Checked {
    fn resolve(&self, name: Name) -> Resolving {
        let (lookup, public_only) = (self.names.lookup(name.as_str()), self.public_only);
        Box::pin(async move {
            let addresses = lookup.await?;
            // One bad address spoils the name: which of them is connected to is not ours to say.
            if let Some(bad) = addresses.iter().find(|ip| public_only && !is_public(**ip)) {
                return Err(NotAllowed::NotPublic(*bad).into());
            }
            let sockets = addresses.into_iter().take(ADDRESSES_MAX).map(|ip| SocketAddr::new(ip, 0));
            Ok(Box::new(sockets) as Addrs)
        })
    }
}
