//! The query of `POST /build` (Engine API, "Build an image").

use std::collections::BTreeMap;

use corten_build::{
    AllowedDevice, BuildRequest, CacheImport, Context, DockerfileSource, Inquiry, StepNetworkMode,
};
use corten_engine::models;
use corten_oci::ImageRef;

use super::super::containers::platform;
use crate::error::ApiError;
use crate::query::truthy;

/// What a query asks for.
#[derive(Debug)]
pub(super) struct Wish {
    pub(super) request: BuildRequest,
    /// Tell the image's id alone.
    pub(super) quiet: bool,
    /// Answer with the build's own events.
    pub(super) events: bool,
    /// Answer a question instead of building.
    pub(super) inquiry: Option<Inquiry>,
    /// A shell in a step that fails.
    pub(super) shell: bool,
    /// Memory and CPUs of the steps.
    pub(super) host: models::HostConfig,
}

/// Parameters whose absence, zero and emptiness mean the same, and which would change the
/// result if they were passed over.
const REFUSED: &[(&str, &str)] = &[
    ("squash", "squashed images"),
    ("securityopt", "security options of build steps"),
    ("isolation", "isolation modes"),
    ("outputs", "output types"),
];

/// As in `HostConfig`; -1: no limit.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ulimit {
    name: String,
    soft: i64,
    hard: i64,
}

fn is_unset(value: &str) -> bool {
    matches!(value, "" | "0" | "false" | "null" | "[]" | "{}" | "default")
}

pub(super) fn read(pairs: &[(String, String)]) -> Result<Wish, ApiError> {
    let bad = ApiError::bad_parameter;
    let mut wish = Wish {
        request: BuildRequest::default(),
        quiet: false,
        events: false,
        inquiry: None,
        shell: false,
        host: models::HostConfig::default(),
    };
    let request = &mut wish.request;
    for (name, value) in pairs {
        match name.as_str() {
            "t" if !value.is_empty() => {
                let tag: ImageRef = value.parse().map_err(|e| {
                    bad(format!(
                        "invalid argument \"{value}\" for \"-t, --tag\" flag: {e}"
                    ))
                })?;
                if tag.digest().is_some() {
                    return Err(bad(format!(
                        "refusing to create a tag with a digest reference: {value}"
                    )));
                }
                request.tags.push(tag.or_latest());
            }
            "dockerfile" if !value.is_empty() => {
                request.dockerfile = DockerfileSource::InContext(value.clone());
            }
            "remote" if !value.is_empty() => request.context = Context::Remote(value.clone()),
            "version" if value == "2" => {
                return Err(bad(
                    "BuildKit's session protocol is not offered: build with DOCKER_BUILDKIT=0"
                        .to_owned(),
                ));
            }
            "buildargs" => request.build_args = json(name, value)?,
            "labels" => {
                let labels: BTreeMap<String, Option<String>> = json(name, value)?;
                request.labels = labels
                    .into_iter()
                    .map(|(key, v)| (key, v.unwrap_or_default()))
                    .collect();
            }
            "target" if !value.is_empty() => request.target = Some(value.clone()),
            "nocache" => request.no_cache = truthy(value),
            "pull" => request.pull = truthy(value),
            "q" => wish.quiet = truthy(value),
            "corten" => wish.events = truthy(value),
            "call" if !matches!(value.as_str(), "" | "build") => {
                let inquiry = Inquiry::parse(value);
                wish.inquiry = Some(inquiry.ok_or_else(|| {
                    bad(format!(
                        "unknown call \"{value}\": there are build, check, outline and targets"
                    ))
                })?);
            }
            "platform" => {
                for word in value.split(',').filter(|word| !word.is_empty()) {
                    let platform = platform(Some(word))?;
                    let known = &mut request.platforms;
                    known.extend(platform.filter(|platform| !known.contains(platform)));
                }
            }
            "networkmode" => {
                request.network = StepNetworkMode::parse(value).map_err(|word| {
                    bad(format!("build steps cannot join the network \"{word}\": only default, none and host"))
                })?;
            }
            "shmsize" if !is_unset(value) => {
                let size = value
                    .parse()
                    .map_err(|_| bad(format!("invalid shmsize: {value}")))?;
                request.limits.shm_size = Some(size);
            }
            "ulimits" if !is_unset(value) => {
                let limits: Vec<Ulimit> = json(name, value)?;
                for limit in limits {
                    let bound = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
                    let limit = (limit.name, bound(limit.soft), bound(limit.hard));
                    request.limits.ulimits.push(limit);
                }
            }
            "memory" => wish.host.memory = amount(name, value)?,
            "memswap" => wish.host.memory_swap = amount(name, value)?,
            "cpushares" => wish.host.cpu_shares = amount(name, value)?,
            "cpuperiod" => wish.host.cpu_period = amount(name, value)?,
            "cpuquota" => wish.host.cpu_quota = amount(name, value)?,
            "cpusetcpus" if !value.is_empty() => wish.host.cpuset_cpus = Some(value.clone()),
            "cpusetmems" if !value.is_empty() => wish.host.cpuset_mems = Some(value.clone()),
            "nocachefilter" => request.no_cache_stages.extend(
                value
                    .split(',')
                    .filter(|name| !name.is_empty())
                    .map(str::to_owned),
            ),
            "cgroupparent" if !is_unset(value) => {
                let parent = value.trim_matches('/');
                if parent.is_empty()
                    || parent
                        .split('/')
                        .any(|part| matches!(part, "" | "." | ".."))
                {
                    return Err(bad(format!("invalid cgroup parent: {value}")));
                }
                request.limits.cgroup_parent = Some(parent.to_owned());
            }
            "attest" if !value.is_empty() => request.attest = json(name, value)?,
            "rewritetimestamp" => request.rewrite_times = Some(truthy(value)),
            "shell" => wish.shell = truthy(value),
            "noimage" => request.no_image = truthy(value),
            "allowdevice" if matches!(value.as_str(), "" | "*") => {
                request.allow_devices.all = true;
            }
            "allowdevice" => {
                let device = AllowedDevice::parse(value).map_err(bad)?;
                request.allow_devices.some.push(device);
            }
            "insecure" => request.allow_insecure = truthy(value),
            "extrahosts" => {
                for entry in hosts(value)? {
                    let (host, address) = entry
                        .split_once([':', '='])
                        .ok_or_else(|| bad(format!("bad format for add-host: \"{entry}\"")))?;
                    request
                        .extra_hosts
                        .push((host.to_owned(), address.to_owned()));
                }
            }
            "cachefrom" if !is_unset(value) => {
                let images: Vec<String> = json(name, value)?;
                for image in images {
                    let parsed: ImageRef = image
                        .parse()
                        .map_err(|e| bad(format!("invalid cachefrom {image:?}: {e}")))?;
                    let parsed = CacheImport::Registry(parsed.or_latest());
                    request.cache_from.push(parsed);
                }
            }
            _ => {}
        }
        if let Some((_, what)) = REFUSED.iter().find(|(refused, _)| refused == name)
            && !is_unset(value)
        {
            return Err(bad(format!("{what} are not supported ({name}={value})")));
        }
    }
    if wish.shell && (wish.inquiry.is_some() || !wish.events) {
        return Err(bad(
            "shell=1: only a build that tells its own events (corten=1) opens a shell".to_owned(),
        ));
    }
    Ok(wish)
}

/// A number; 0 is none.
fn amount(name: &str, value: &str) -> Result<Option<i64>, ApiError> {
    if value.is_empty() {
        return Ok(None);
    }
    let number: i64 = value
        .parse()
        .map_err(|_| ApiError::bad_parameter(format!("invalid {name}: {value}")))?;
    Ok(Some(number).filter(|number| *number != 0))
}

/// Old clients send a JSON list, new ones a comma-separated one.
fn hosts(value: &str) -> Result<Vec<String>, ApiError> {
    if value.starts_with('[') {
        return json("extrahosts", value);
    }
    Ok(value
        .split(',')
        .filter(|h| !h.is_empty())
        .map(str::to_owned)
        .collect())
}

fn json<T: serde::de::DeserializeOwned + Default>(name: &str, value: &str) -> Result<T, ApiError> {
    if matches!(value, "" | "null") {
        return Ok(T::default());
    }
    serde_json::from_str(value)
        .map_err(|error| ApiError::bad_parameter(format!("invalid {name}: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(pairs: &[(&str, &str)]) -> Result<Wish, String> {
        let pairs: Vec<_> = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
            .collect();
        read(&pairs).map_err(|e| e.to_string())
    }

    #[test]
    fn what_dockers_client_sends_by_default() {
        let wish = wish(&[
            ("buildargs", "{\"A\":\"1\",\"B\":null}"),
            ("cachefrom", "[]"),
            ("cgroupparent", ""),
            ("cpuperiod", "0"),
            ("dockerfile", "Dockerfile"),
            ("labels", "{}"),
            ("memory", "0"),
            ("networkmode", "default"),
            ("rm", "1"),
            ("shmsize", "0"),
            ("t", "app"),
            ("t", "app:2"),
            ("target", ""),
            ("ulimits", "null"),
            ("version", "1"),
        ])
        .unwrap();
        let tags: Vec<_> = wish.request.tags.iter().map(ImageRef::familiar).collect();
        assert_eq!(tags, ["app:latest", "app:2"]);
        assert_eq!(wish.request.build_args["A"].as_deref(), Some("1"));
        assert_eq!(wish.request.build_args["B"], None);
        assert!(!wish.quiet && !wish.events);
        assert_eq!(wish.host, models::HostConfig::default());
        let limits = "[{\"Name\":\"nofile\",\"Soft\":5,\"Hard\":-1}]";
        let limited = self::wish(&[("ulimits", limits), ("shmsize", "1024")]).unwrap();
        let limits = limited.request.limits;
        assert_eq!(limits.ulimits, [("nofile".to_owned(), 5, u64::MAX)]);
        assert_eq!(limits.shm_size, Some(1024));
        let pairs = [
            ("memory", "6291456"),
            ("memswap", "-1"),
            ("cpusetcpus", "0"),
        ];
        let host = self::wish(&pairs).unwrap().host;
        assert_eq!((host.memory, host.memory_swap), (Some(6 << 20), Some(-1)));
        assert_eq!(host.cpuset_cpus.as_deref(), Some("0"));
        let cached = self::wish(&[("cachefrom", "[\"app\"]")]).unwrap();
        let expected = CacheImport::Registry("app:latest".parse().unwrap());
        assert_eq!(cached.request.cache_from, [expected]);
    }

    #[test]
    fn devices_are_some_or_all() {
        use corten_build::AllowedDevices;
        let devices = |values: &[&str]| {
            let pairs: Vec<_> = values.iter().map(|value| ("allowdevice", *value)).collect();
            wish(&pairs).unwrap().request.allow_devices
        };
        let some = |values: &[&str], all| {
            let some = values
                .iter()
                .map(|value| AllowedDevice::parse(value).unwrap());
            let some = some.collect();
            AllowedDevices { all, some }
        };
        assert_eq!(devices(&[]), some(&[], false));
        assert_eq!(
            devices(&["a", "b,alias=c"]),
            some(&["a", "b,alias=c"], false)
        );
        assert_eq!(devices(&["a", "*", "b"]), some(&["a", "b"], true));
        assert_eq!(devices(&[""]), some(&[], true));
        assert!(wish(&[("allowdevice", "a,color=b")]).is_err());
        assert!(wish(&[("shell", "1"), ("corten", "1")]).unwrap().shell);
    }

    #[test]
    fn what_cannot_be_done_is_refused() {
        for (name, value) in [
            ("memory", "much"),
            ("networkmode", "mine"),
            ("t", "UPPER"),
            ("squash", "1"),
            ("extrahosts", "nothing"),
            ("version", "2"),
            ("shell", "1"),
        ] {
            assert!(wish(&[(name, value)]).is_err(), "{name}");
        }
    }
}
