//! Build graph: plan, solve in parallel, cache, export
