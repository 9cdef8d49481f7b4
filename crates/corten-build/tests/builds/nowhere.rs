//! An engine without registries or networks of its own, but one bridge.

use super::*;

/// A bridge for whoever asks; no registry.
pub(crate) struct Nowhere;

pub(crate) const TABLE: &str = "corten_build_test";
pub(crate) const BRIDGE: &str = "crtbuildtest";

impl StepNetwork for Nowhere {
    fn allocate(&self, id: &str) -> Result<StepEndpoint, BoxError> {
        let request = corten_network::BridgeRequest {
            table: TABLE.to_owned(),
            bridge: BRIDGE.to_owned(),
            mtu: 1500,
            internal: false,
            icc: true,
        };
        let candidates = corten_network::ipam::candidates(Some(0xbeef));
        let bridge = corten_network::claim_bridge(&request, candidates, &[])?;
        let address = std::net::Ipv4Addr::from_bits(bridge.gateway.to_bits() + 1);
        let endpoint = corten_network::EndpointSpec {
            address: bridge.subnet.with_addr(address),
            bridge,
            host_ifname: format!("vt{}", &id[6..14]),
            ifname: "eth0".to_owned(),
            address6: None,
            mac: corten_network::mac_for(address),
            ports: Vec::new(),
        };
        Ok(StepEndpoint {
            endpoint,
            lease: Box::new(()),
        })
    }

    fn resolv_conf(&self, _: StepNetworkMode) -> Result<String, BoxError> {
        Ok("nameserver 192.0.2.1\n".to_owned())
    }
}

impl ImageSource for Nowhere {
    fn pull<'a>(&'a self, _: &'a ImageRef, _: &'a Platform, _: PullSink) -> PullFuture<'a> {
        Box::pin(async { Err("not found".into()) })
    }

    fn document<'a>(
        &'a self,
        _: &'a ImageRef,
        _: &'a Platform,
    ) -> PullFuture<'a, RegistryDocument> {
        Box::pin(async { Err("not found".into()) })
    }

    fn layer<'a>(&'a self, _: &'a ImageRef, _: &'a DiffId, _: &'a LayerBlob) -> PullFuture<'a, ()> {
        Box::pin(async { Err("not found".into()) })
    }

    fn publish<'a>(
        &'a self,
        _: &'a ImageRef,
        _: Vec<CachedBlob>,
        _: &'a [u8],
        _: &'a str,
    ) -> PullFuture<'a, ()> {
        Box::pin(async { Err("not found".into()) })
    }
}
