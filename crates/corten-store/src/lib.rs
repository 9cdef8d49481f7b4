//! Content store: blobs, layers, images, leases, garbage collection
