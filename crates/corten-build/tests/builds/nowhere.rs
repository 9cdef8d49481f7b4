//! An engine without registries or networks of its own, but one bridge.

use super::*;

/// A bridge for whoever asks; no registry.
pub(crate) struct Nowhere;

pub(crate) const TABLE: &str = "corten_build_test";
pub(crate) const BRIDGE: &str = "crtbuildtest";

impl StepNetwork for Nowhere {
    fn allocate(&self, id: &str) -> Result<StepEndpoint, BoxError> {
        let wanted = corten_network::BridgeSpec::new(TABLE.to_owned(), BRIDGE.to_owned());
        let candidates = corten_network::ipam::candidates(Some(0xbeef));
        let bridge = corten_network::claim_bridge(&wanted, Some(candidates), None, &[])?;
        let gateway = bridge.address().expect("claimed");
        let address = std::net::Ipv4Addr::from_bits(gateway.addr().to_bits() + 1);
        let endpoint = corten_network::EndpointSpec::new(
            corten_network::Driver::Bridge(bridge),
            format!("vt{}", &id[6..14]),
            Some(gateway.with_addr(address)),
            None,
        );
        Ok(StepEndpoint {
            endpoint,
            lease: Box::new(()),
        })
    }

    fn resolv_conf(&self, _: StepNetworkMode) -> Result<String, BoxError> {
        Ok("nameserver 192.0.2.1\n".to_owned())
    }
}

/// Has an image of another platform, which somebody prunes as soon as it is pulled, so often.
pub(crate) struct Pruned {
    pub(crate) store: Store,
    pub(crate) times: std::sync::atomic::AtomicU32,
}

impl Pruned {
    fn pulled(&self, platform: &Platform) -> Digest {
        let architecture = &platform.architecture;
        let config = format!(
            r#"{{"architecture":"{architecture}","os":"linux",
                "rootfs":{{"type":"layers","diff_ids":[]}}}}"#
        );
        let images = self.store.images();
        let id = images.put(config.as_bytes(), None).unwrap();
        let one_less = |times: u32| times.checked_sub(1);
        let order = std::sync::atomic::Ordering::Relaxed;
        if self.times.fetch_update(order, order, one_less).is_ok() {
            assert!(images.delete_unless(&id, &[], |_| Ok(false)).unwrap());
            self.store.gc().unwrap();
        }
        id
    }
}

impl ImageSource for Pruned {
    fn pull<'a>(&'a self, _: &'a ImageRef, platform: &'a Platform, _: PullSink) -> PullFuture<'a> {
        Box::pin(async { Ok(self.pulled(platform)) })
    }

    fn document<'a>(
        &'a self,
        image: &'a ImageRef,
        platform: &'a Platform,
    ) -> PullFuture<'a, RegistryDocument> {
        Nowhere.document(image, platform)
    }

    fn layer<'a>(
        &'a self,
        image: &'a ImageRef,
        layer: &'a DiffId,
        blob: &'a LayerBlob,
    ) -> PullFuture<'a, ()> {
        Nowhere.layer(image, layer, blob)
    }

    fn publish<'a>(
        &'a self,
        image: &'a ImageRef,
        blobs: Vec<CachedBlob>,
        manifest: &'a [u8],
        media_type: &'a str,
    ) -> PullFuture<'a, ()> {
        Nowhere.publish(image, blobs, manifest, media_type)
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
