//! Values of flags with a grammar of their own: mounts, networks, devices, sizes and the like.
#![no_main]

use std::path::Path;

use corten_cli::opts::{
    blkio, device, duration, hosts, mount, network, platform, signal, size, ulimit,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let cwd = Path::new("/work");
    let _ = mount::parse(text, cwd);
    let _ = mount::check_bind(text);
    let _ = mount::bind_spec(text, cwd);
    let _ = network::parse(text);
    let _ = device::parse(text);
    let _ = device::gpus(text);
    let _ = duration::parse(text);
    let _ = size::parse(text);
    let _ = ulimit::parse(text);
    let _ = platform::check(text);
    let _ = signal::detach_keys(text);
    let _ = (hosts::add_host(text), hosts::address(text));
    let _ = (hosts::search_domain(text), hosts::mac(text));
    let _ = (blkio::bps(text), blkio::iops(text), blkio::weight(text));
});
