//! OCI runtime: bundle to isolated process
