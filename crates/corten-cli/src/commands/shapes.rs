//! The Go types of what `inspect` shows (`github.com/docker/docker/api/types`), so that
//! templates find a field that is empty in an object, as with Docker.

use crate::template::Shape::{self, Bool, List, Map, Moment, Number, Pointer, Struct, Text};

const TEXTS: Shape = List(&Text);
const PAIRS: Shape = Map(&Text);
/// `map[string]struct{}`
const SET: Shape = Map(&Struct(&[]));

const HEALTH_CONFIG: Shape = Struct(&[
    ("Test", TEXTS),
    ("Interval", Number),
    ("Timeout", Number),
    ("StartPeriod", Number),
    ("StartInterval", Number),
    ("Retries", Number),
]);

const DRIVER: Shape = Struct(&[("Name", Text), ("Data", PAIRS)]);

const PORTS: Shape = Map(&List(&Struct(&[("HostIp", Text), ("HostPort", Text)])));

const PLATFORM: Shape = Struct(&[
    ("architecture", Text),
    ("os", Text),
    ("os.version", Text),
    ("os.features", TEXTS),
    ("variant", Text),
]);

const DESCRIPTOR: Shape = Struct(&[
    ("mediaType", Text),
    ("digest", Text),
    ("size", Number),
    ("urls", TEXTS),
    ("annotations", PAIRS),
    ("data", Text),
    ("platform", Pointer(&PLATFORM)),
    ("artifactType", Text),
]);

/// An image.
pub(crate) static IMAGE: Shape = Struct(&[
    ("Id", Text),
    ("RepoTags", TEXTS),
    ("RepoDigests", TEXTS),
    ("Parent", Text),
    ("Comment", Text),
    ("Created", Moment),
    ("Container", Text),
    ("ContainerConfig", Pointer(&CONTAINER_CONFIG)),
    ("DockerVersion", Text),
    ("Author", Text),
    ("Config", Pointer(&IMAGE_CONFIG)),
    ("Architecture", Text),
    ("Variant", Text),
    ("Os", Text),
    ("OsVersion", Text),
    ("Size", Number),
    ("VirtualSize", Number),
    ("GraphDriver", DRIVER),
    ("RootFS", Struct(&[("Type", Text), ("Layers", TEXTS)])),
    ("Metadata", Struct(&[("LastTagTime", Moment)])),
    ("Descriptor", Pointer(&DESCRIPTOR)),
    ("Manifests", List(&Shape::Any)),
]);

const IMAGE_CONFIG: Shape = Struct(&[
    ("User", Text),
    ("ExposedPorts", SET),
    ("Env", TEXTS),
    ("Entrypoint", TEXTS),
    ("Cmd", TEXTS),
    ("Volumes", SET),
    ("WorkingDir", Text),
    ("Labels", PAIRS),
    ("StopSignal", Text),
    ("ArgsEscaped", Bool),
    ("Healthcheck", Pointer(&HEALTH_CONFIG)),
    ("OnBuild", TEXTS),
    ("Shell", TEXTS),
]);

/// A container.
pub(crate) static CONTAINER: Shape = Struct(&[
    ("Id", Text),
    ("Created", Text),
    ("Path", Text),
    ("Args", TEXTS),
    ("State", Pointer(&STATE)),
    ("Image", Text),
    ("ResolvConfPath", Text),
    ("HostnamePath", Text),
    ("HostsPath", Text),
    ("LogPath", Text),
    ("Name", Text),
    ("RestartCount", Number),
    ("Driver", Text),
    ("Platform", Text),
    ("MountLabel", Text),
    ("ProcessLabel", Text),
    ("AppArmorProfile", Text),
    ("ExecIDs", TEXTS),
    ("HostConfig", Pointer(&HOST_CONFIG)),
    ("GraphDriver", DRIVER),
    ("SizeRw", Pointer(&Number)),
    ("SizeRootFs", Pointer(&Number)),
    ("Mounts", List(&MOUNT_POINT)),
    ("Config", Pointer(&CONTAINER_CONFIG)),
    ("NetworkSettings", Pointer(&NETWORK_SETTINGS)),
    ("ImageManifestDescriptor", Pointer(&DESCRIPTOR)),
]);

const STATE: Shape = Struct(&[
    ("Status", Text),
    ("Running", Bool),
    ("Paused", Bool),
    ("Restarting", Bool),
    ("OOMKilled", Bool),
    ("Dead", Bool),
    ("Pid", Number),
    ("ExitCode", Number),
    ("Error", Text),
    ("StartedAt", Text),
    ("FinishedAt", Text),
    ("Health", Pointer(&HEALTH)),
]);

const HEALTH: Shape = Struct(&[
    ("Status", Text),
    ("FailingStreak", Number),
    (
        "Log",
        List(&Struct(&[
            ("Start", Moment),
            ("End", Moment),
            ("ExitCode", Number),
            ("Output", Text),
        ])),
    ),
]);

const CONTAINER_CONFIG: Shape = Struct(&[
    ("Hostname", Text),
    ("Domainname", Text),
    ("User", Text),
    ("AttachStdin", Bool),
    ("AttachStdout", Bool),
    ("AttachStderr", Bool),
    ("ExposedPorts", SET),
    ("Tty", Bool),
    ("OpenStdin", Bool),
    ("StdinOnce", Bool),
    ("Env", TEXTS),
    ("Cmd", TEXTS),
    ("Healthcheck", Pointer(&HEALTH_CONFIG)),
    ("ArgsEscaped", Bool),
    ("Image", Text),
    ("Volumes", SET),
    ("WorkingDir", Text),
    ("Entrypoint", TEXTS),
    ("NetworkDisabled", Bool),
    ("MacAddress", Text),
    ("OnBuild", TEXTS),
    ("Labels", PAIRS),
    ("StopSignal", Text),
    ("StopTimeout", Pointer(&Number)),
    ("Shell", TEXTS),
]);

const WEIGHTS: Shape = List(&Struct(&[("Path", Text), ("Weight", Number)]));
const THROTTLES: Shape = List(&Struct(&[("Path", Text), ("Rate", Number)]));

const HOST_CONFIG: Shape = Struct(&[
    ("Binds", TEXTS),
    ("ContainerIDFile", Text),
    ("LogConfig", Struct(&[("Type", Text), ("Config", PAIRS)])),
    ("NetworkMode", Text),
    ("PortBindings", PORTS),
    (
        "RestartPolicy",
        Struct(&[("Name", Text), ("MaximumRetryCount", Number)]),
    ),
    ("AutoRemove", Bool),
    ("VolumeDriver", Text),
    ("VolumesFrom", TEXTS),
    ("ConsoleSize", List(&Number)),
    ("Annotations", PAIRS),
    ("CapAdd", TEXTS),
    ("CapDrop", TEXTS),
    ("CgroupnsMode", Text),
    ("Dns", TEXTS),
    ("DnsOptions", TEXTS),
    ("DnsSearch", TEXTS),
    ("ExtraHosts", TEXTS),
    ("GroupAdd", TEXTS),
    ("IpcMode", Text),
    ("Cgroup", Text),
    ("Links", TEXTS),
    ("OomScoreAdj", Number),
    ("PidMode", Text),
    ("Privileged", Bool),
    ("PublishAllPorts", Bool),
    ("ReadonlyRootfs", Bool),
    ("SecurityOpt", TEXTS),
    ("StorageOpt", PAIRS),
    ("Tmpfs", PAIRS),
    ("UTSMode", Text),
    ("UsernsMode", Text),
    ("ShmSize", Number),
    ("Sysctls", PAIRS),
    ("Runtime", Text),
    ("Isolation", Text),
    ("CpuShares", Number),
    ("Memory", Number),
    ("NanoCpus", Number),
    ("CgroupParent", Text),
    ("BlkioWeight", Number),
    ("BlkioWeightDevice", WEIGHTS),
    ("BlkioDeviceReadBps", THROTTLES),
    ("BlkioDeviceWriteBps", THROTTLES),
    ("BlkioDeviceReadIOps", THROTTLES),
    ("BlkioDeviceWriteIOps", THROTTLES),
    ("CpuPeriod", Number),
    ("CpuQuota", Number),
    ("CpuRealtimePeriod", Number),
    ("CpuRealtimeRuntime", Number),
    ("CpusetCpus", Text),
    ("CpusetMems", Text),
    (
        "Devices",
        List(&Struct(&[
            ("PathOnHost", Text),
            ("PathInContainer", Text),
            ("CgroupPermissions", Text),
        ])),
    ),
    ("DeviceCgroupRules", TEXTS),
    (
        "DeviceRequests",
        List(&Struct(&[
            ("Driver", Text),
            ("Count", Number),
            ("DeviceIDs", TEXTS),
            ("Capabilities", List(&TEXTS)),
            ("Options", PAIRS),
        ])),
    ),
    ("KernelMemory", Number),
    ("KernelMemoryTCP", Number),
    ("MemoryReservation", Number),
    ("MemorySwap", Number),
    ("MemorySwappiness", Pointer(&Number)),
    ("OomKillDisable", Pointer(&Bool)),
    ("PidsLimit", Pointer(&Number)),
    (
        "Ulimits",
        List(&Struct(&[
            ("Name", Text),
            ("Hard", Number),
            ("Soft", Number),
        ])),
    ),
    ("CpuCount", Number),
    ("CpuPercent", Number),
    ("IOMaximumIOps", Number),
    ("IOMaximumBandwidth", Number),
    ("Mounts", List(&MOUNT)),
    ("MaskedPaths", TEXTS),
    ("ReadonlyPaths", TEXTS),
    ("Init", Pointer(&Bool)),
]);

const MOUNT: Shape = Struct(&[
    ("Type", Text),
    ("Source", Text),
    ("Target", Text),
    ("ReadOnly", Bool),
    ("Consistency", Text),
    ("BindOptions", Pointer(&BIND_OPTIONS)),
    ("VolumeOptions", Pointer(&VOLUME_OPTIONS)),
    ("ImageOptions", Pointer(&Struct(&[("Subpath", Text)]))),
    ("TmpfsOptions", Pointer(&TMPFS_OPTIONS)),
]);

const BIND_OPTIONS: Shape = Struct(&[
    ("Propagation", Text),
    ("NonRecursive", Bool),
    ("CreateMountpoint", Bool),
    ("ReadOnlyNonRecursive", Bool),
    ("ReadOnlyForceRecursive", Bool),
]);

const VOLUME_OPTIONS: Shape = Struct(&[
    ("NoCopy", Bool),
    ("Labels", PAIRS),
    ("Subpath", Text),
    (
        "DriverConfig",
        Pointer(&Struct(&[("Name", Text), ("Options", PAIRS)])),
    ),
]);

const TMPFS_OPTIONS: Shape = Struct(&[
    ("SizeBytes", Number),
    ("Mode", Number),
    ("Options", List(&TEXTS)),
]);

const MOUNT_POINT: Shape = Struct(&[
    ("Type", Text),
    ("Name", Text),
    ("Source", Text),
    ("Destination", Text),
    ("Driver", Text),
    ("Mode", Text),
    ("RW", Bool),
    ("Propagation", Text),
]);

const NETWORK_SETTINGS: Shape = Struct(&[
    ("Bridge", Text),
    ("SandboxID", Text),
    ("SandboxKey", Text),
    ("Ports", PORTS),
    ("HairpinMode", Bool),
    ("LinkLocalIPv6Address", Text),
    ("LinkLocalIPv6PrefixLen", Number),
    ("SecondaryIPAddresses", List(&Shape::Any)),
    ("SecondaryIPv6Addresses", List(&Shape::Any)),
    ("Networks", Map(&Pointer(&ENDPOINT))),
]);

const ENDPOINT: Shape = Struct(&[
    (
        "IPAMConfig",
        Pointer(&Struct(&[
            ("IPv4Address", Text),
            ("IPv6Address", Text),
            ("LinkLocalIPs", TEXTS),
        ])),
    ),
    ("Links", TEXTS),
    ("Aliases", TEXTS),
    ("MacAddress", Text),
    ("DriverOpts", PAIRS),
    ("GwPriority", Number),
    ("NetworkID", Text),
    ("EndpointID", Text),
    ("Gateway", Text),
    ("IPAddress", Text),
    ("IPPrefixLen", Number),
    ("IPv6Gateway", Text),
    ("GlobalIPv6Address", Text),
    ("GlobalIPv6PrefixLen", Number),
    ("DNSNames", TEXTS),
]);

/// A network.
pub(crate) static NETWORK: Shape = Struct(&[
    ("Name", Text),
    ("Id", Text),
    ("Created", Moment),
    ("Scope", Text),
    ("Driver", Text),
    ("EnableIPv4", Bool),
    ("EnableIPv6", Bool),
    (
        "IPAM",
        Struct(&[
            ("Driver", Text),
            ("Options", PAIRS),
            (
                "Config",
                List(&Struct(&[
                    ("Subnet", Text),
                    ("IPRange", Text),
                    ("Gateway", Text),
                    ("AuxiliaryAddresses", PAIRS),
                ])),
            ),
        ]),
    ),
    ("Internal", Bool),
    ("Attachable", Bool),
    ("Ingress", Bool),
    ("ConfigFrom", Struct(&[("Network", Text)])),
    ("ConfigOnly", Bool),
    (
        "Containers",
        Map(&Struct(&[
            ("Name", Text),
            ("EndpointID", Text),
            ("MacAddress", Text),
            ("IPv4Address", Text),
            ("IPv6Address", Text),
        ])),
    ),
    ("Options", PAIRS),
    ("Labels", PAIRS),
    ("Peers", List(&Struct(&[("Name", Text), ("IP", Text)]))),
    ("Services", Map(&Shape::Any)),
]);

/// A volume.
pub(crate) static VOLUME: Shape = Struct(&[
    ("Name", Text),
    ("Driver", Text),
    ("Mountpoint", Text),
    ("CreatedAt", Text),
    ("Status", Map(&Shape::Any)),
    ("Labels", PAIRS),
    ("Scope", Text),
    ("Options", PAIRS),
    (
        "UsageData",
        Pointer(&Struct(&[("Size", Number), ("RefCount", Number)])),
    ),
    ("ClusterVolume", Pointer(&Shape::Any)),
]);

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::template::{Data, Template};

    fn render(shape: Shape, root: &Value, template: &str) -> String {
        let data = Data {
            root: root.clone(),
            shape,
            ..Data::default()
        };
        match Template::parse(template).and_then(|t| t.render(&data)) {
            Ok(text) => text,
            Err(error) => format!("! {error}"),
        }
    }

    #[test]
    fn sets_print_as_with_docker() {
        let config = json!({"ExposedPorts": {"80/tcp": {}, "443/tcp": {}}, "Volumes": {"/v": {}}});
        let image = json!({"Id": "sha256:1", "Config": config});
        let template = "{{.Config.ExposedPorts}} {{.Config.Volumes}}";
        let expected = "map[443/tcp:{} 80/tcp:{}] map[/v:{}]";
        assert_eq!(render(IMAGE, &image, template), expected);
    }

    #[test]
    fn empty_fields_of_images_print_as_with_docker() {
        let image = json!({"Id": "sha256:1", "Config": {"Cmd": ["sh"], "Env": null}});
        for (template, expected) in [
            ("{{.Config.Labels}}", "map[]"),
            ("{{index .Config.Labels \"x\"}}", ""),
            ("{{.Config.Labels.foo}}", "<no value>"),
            ("{{.Config.User}}|{{.Variant}}|{{.Parent}}", "||"),
            (
                "{{.DockerVersion}}|{{.OsVersion}}|{{.Created}}",
                "||0001-01-01T00:00:00Z",
            ),
            (
                "{{.Config.Entrypoint}} {{.Config.Env}} {{.Config.Cmd}}",
                "[] [] [sh]",
            ),
            (
                "{{.Config.ExposedPorts}} {{.Config.Volumes}}",
                "map[] map[]",
            ),
            ("{{.Config.Healthcheck}}", "<nil>"),
            ("{{join .Config.Entrypoint \" \"}}", ""),
            ("{{eq .Config.User \"\"}}", "true"),
            ("{{with .Config}}{{.User}}{{len .Labels}}{{end}}", "0"),
            (
                "{{$c := .Config}}{{$c.Labels}}{{$.Config.Labels}}",
                "map[]map[]",
            ),
            ("{{range .Config.Entrypoint}}x{{else}}none{{end}}", "none"),
            // What prints the whole is left as the engine gave it.
            ("{{json .Config}}", "{\"Cmd\":[\"sh\"],\"Env\":null}"),
        ] {
            assert_eq!(render(IMAGE, &image, template), expected, "{template}");
        }
        for (template, key) in [
            ("{{.Config.Hostname}}", "Hostname"),
            ("{{.Nope}}", "Nope"),
            ("{{.Config.Healthcheck.Test}}", "Healthcheck"),
        ] {
            let said = render(IMAGE, &image, template);
            let reason = format!("map has no entry for key {key:?}");
            assert!(said.starts_with("! ") && said.ends_with(&reason), "{said}");
        }
    }

    #[test]
    fn empty_fields_of_other_objects_print_as_with_docker() {
        let container = json!({
            "State": {"Running": true}, "HostConfig": {"PidsLimit": null}, "Config": {},
            "Mounts": [{"Type": "bind"}],
            "NetworkSettings": {"Ports": {"80/tcp": null}, "Networks": {"bridge": {}}},
        });
        for (template, expected) in [
            ("{{.State.Health}} {{.HostConfig.Init}}", "<nil> <nil>"),
            (
                "{{.HostConfig.PidsLimit}} {{.HostConfig.Memory}}",
                "<nil> 0",
            ),
            ("{{.Config.Labels}} {{.Config.Tty}}", "map[] false"),
            (
                "{{if .State.Health}}{{.State.Health.Status}}{{else}}-{{end}}",
                "-",
            ),
            ("{{range .Mounts}}{{.Type}}:{{.Name}};{{end}}", "bind:;"),
            ("[{{(index .Mounts 0).Driver}}]", "[]"),
            ("{{index .NetworkSettings.Ports \"80/tcp\"}}", "[]"),
            (
                "{{range $k, $v := .NetworkSettings.Networks}}{{$k}}{{$v.Aliases}}{{end}}",
                "bridge[]",
            ),
            ("[{{.NetworkSettings.Networks.bridge.IPAddress}}]", "[]"),
        ] {
            assert_eq!(
                render(CONTAINER, &container, template),
                expected,
                "{template}"
            );
        }
        let empty = json!({});
        assert_eq!(
            render(VOLUME, &empty, "{{.Status}} {{.UsageData}}"),
            "map[] <nil>"
        );
        assert_eq!(
            render(NETWORK, &empty, "{{.IPAM.Config}} {{.Internal}}"),
            "[] false"
        );
    }
}
