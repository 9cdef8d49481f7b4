//! Docker Engine API: routes over the engine's services
