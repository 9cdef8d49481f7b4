//! Networks: the built-in `bridge`, `host` and `none`.

use bollard_stubs::models;

use crate::engine::Engine;
use crate::error::EngineError;

type Result<T> = std::result::Result<T, EngineError>;

/// The network service. `name` arguments take a name, an id or an unambiguous prefix.
#[derive(Debug, Clone)]
pub struct Networks(pub(crate) Engine);

impl Networks {
    /// Lists networks; filters `name`, `id`, `driver`, `type`, `scope`, `label`, `dangling`.
    pub async fn list(&self, filters: crate::Filters) -> Result<Vec<models::NetworkInspect>> {
        let _ = filters;
        todo!()
    }
    /// One network with the running containers on it.
    pub async fn inspect(&self, name: &str) -> Result<models::NetworkInspect> {
        let _ = name;
        todo!()
    }
    /// User-defined networks are refused so far, clearly.
    pub async fn create(
        &self,
        request: models::NetworkCreateRequest,
    ) -> Result<models::NetworkCreateResponse> {
        let _ = request;
        todo!()
    }
    /// The built-in networks cannot be removed.
    pub async fn remove(&self, name: &str) -> Result<()> {
        let _ = name;
        todo!()
    }
    /// Removes unused user-defined networks: there are none.
    pub async fn prune(&self, filters: crate::Filters) -> Result<models::NetworkPruneResponse> {
        let _ = filters;
        todo!()
    }
}
