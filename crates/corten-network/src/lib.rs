//! Container networking over netlink: bridges, addresses, nftables, port publishing
