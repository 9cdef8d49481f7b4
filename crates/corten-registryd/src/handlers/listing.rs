//! Lists: tags, repositories, referrers (distribution-spec end-8 and end-12; `_catalog` is
//! Docker's).

use std::sync::Arc;

use axum::body::Body;
use corten_oci::{Digest, media_type};
use http::header::{self, HeaderName};
use http::request::Parts;
use http::{HeaderValue, StatusCode};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::json;

use super::{App, Reply, blocking, json_reply, query, reply};
use crate::auth::Identity;
use crate::error::{ApiError, Code, RegistrydError};
use crate::names::RepoName;
use crate::storage::ReferrersPage;

/// Repositories in one page where the client does not say.
const CATALOG_PAGE: usize = 100;
const FILTERS_APPLIED: HeaderName = HeaderName::from_static("oci-filters-applied");

pub(super) async fn tags(app: &Arc<App>, repo: RepoName, parts: &Parts) -> Reply {
    let name = repo.to_string();
    let there = match &app.proxy {
        Some(proxy) => proxy.tags(&repo).await?,
        None => None,
    };
    let tags = match there {
        Some(tags) => Some(tags),
        None => {
            blocking(app, move |storage| {
                let exists = storage.repo_exists(&repo)?;
                exists.then(|| storage.tags(&repo)).transpose()
            })
            .await?
        }
    };
    let unknown = || ApiError::new(Code::NameUnknown, json!({"name": name}));
    let mut tags = tags.ok_or_else(unknown)?;
    sort(&mut tags);
    let page = page(parts, tags, None)?;
    let mut response = json_reply(&json!({"name": name, "tags": page.items}));
    link(&mut response, &format!("/v2/{name}/tags/list"), page.next)?;
    Ok(response)
}

pub(super) async fn catalog(app: &Arc<App>, who: &Identity, parts: &Parts) -> Reply {
    let names = blocking(app, |storage| storage.repositories()).await?;
    let mut names: Vec<String> = names.iter().map(ToString::to_string).collect();
    names.retain(|name| app.gate.shows(who, name));
    sort(&mut names);
    let page = page(parts, names, Some(CATALOG_PAGE))?;
    let mut response = json_reply(&json!({"repositories": page.items}));
    link(&mut response, "/v2/_catalog", page.next)?;
    Ok(response)
}

pub(super) async fn referrers(
    app: &Arc<App>,
    repo: RepoName,
    subject: Digest,
    parts: &Parts,
) -> Reply {
    let wanted = |name: &str| {
        let mut texts = query(parts, name).into_iter();
        texts.find(|text| !text.is_empty())
    };
    let path = format!("/v2/{repo}/referrers/{subject}");
    let mut page = ReferrersPage::asked_for(wanted("last"), wanted("artifactType"));
    let there = match &app.proxy {
        Some(proxy) => proxy.referrers(&repo, &subject).await,
        None => None,
    };
    let page = match there {
        Some(mut found) => {
            found.retain(|(name, _)| page.is_after(name));
            found.sort_by(|(one, _), (other, _)| one.cmp(other));
            for (name, entry) in found {
                if !page.takes(&name, entry) {
                    break;
                }
            }
            page
        }
        None => {
            blocking(app, move |storage| {
                storage.referrers(&repo, &subject, &mut page)?;
                Ok(page)
            })
            .await?
        }
    };
    let mut headers = vec![(header::CONTENT_TYPE, media_type::OCI_INDEX)];
    if page.artifact_type.is_some() {
        headers.push((FILTERS_APPLIED, "artifactType"));
    }
    let next = page.next.map(|last| {
        let mut link = url::form_urlencoded::Serializer::new(String::new());
        link.append_pair("last", &last);
        if let Some(kind) = &page.artifact_type {
            link.append_pair("artifactType", kind);
        }
        format!("<{path}?{}>; rel=\"next\"", link.finish())
    });
    headers.extend(next.as_deref().map(|next| (header::LINK, next)));
    let index = json!({
        "schemaVersion": 2,
        "mediaType": media_type::OCI_INDEX,
        "manifests": page.entries,
    });
    reply(StatusCode::OK, &headers, Body::from(index.to_string()))
}

/// "Lexical, i.e. case-insensitive alphanumeric" (distribution-spec "Listing Tags"), made a
/// total order so that pages neither repeat nor lose anything.
fn sort(names: &mut [String]) {
    names.sort_by_key(|name| key(name));
}

fn key(name: &str) -> (String, String) {
    (name.to_ascii_lowercase(), name.to_owned())
}

#[derive(Debug)]
struct Page {
    items: Vec<String>,
    /// Page size and last item, where more follow.
    next: Option<(usize, String)>,
}

/// What `n` and `last` ask for. `last` need not be in the list.
fn page(parts: &Parts, names: Vec<String>, default: Option<usize>) -> Result<Page, ApiError> {
    let limit = match query(parts, "n").first() {
        Some(text) => Some(
            text.parse::<usize>()
                .map_err(|_| ApiError::new(Code::PaginationNumberInvalid, json!({"n": text})))?,
        ),
        None => default,
    };
    let mut items = names;
    if let Some(last) = query(parts, "last").first().filter(|last| !last.is_empty()) {
        let last = key(last);
        items.retain(|name| key(name) > last);
    }
    let mut next = None;
    if let Some(limit) = limit
        && items.len() > limit
    {
        items.truncate(limit);
        next = items.last().map(|last| (limit, last.clone()));
    }
    Ok(Page { items, next })
}

fn link(
    response: &mut axum::response::Response,
    path: &str,
    next: Option<(usize, String)>,
) -> Result<(), ApiError> {
    let Some((limit, last)) = next else {
        return Ok(());
    };
    let last = utf8_percent_encode(&last, NON_ALPHANUMERIC);
    let value = format!("<{path}?last={last}&n={limit}>; rel=\"next\"");
    let value = HeaderValue::from_str(&value)
        .map_err(|error| RegistrydError::Internal(format!("cannot send a Link header: {error}")))?;
    response.headers_mut().insert(header::LINK, value);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(target: &str) -> Parts {
        let request = http::Request::builder().uri(target).body(());
        request.unwrap().into_parts().0
    }

    fn ask(target: &str, default: Option<usize>) -> Page {
        let parts = parts(target);
        let mut names: Vec<String> = ["b", "A", "a", "C"].map(str::to_owned).to_vec();
        sort(&mut names);
        page(&parts, names, default).unwrap()
    }

    #[test]
    fn pages() {
        assert_eq!(ask("/", None).items, ["A", "a", "b", "C"]);
        assert_eq!(ask("/", Some(3)).next, Some((3, "b".to_owned())));
        let first = ask("/?n=2", None);
        assert_eq!(first.items, ["A", "a"]);
        assert_eq!(first.next, Some((2, "a".to_owned())));
        let second = ask("/?n=2&last=a", None);
        assert_eq!(second.items, ["b", "C"]);
        assert_eq!(second.next, None);
        assert_eq!(ask("/?last=aa", None).items, ["b", "C"]);
        let none = ask("/?n=0", None);
        assert!(none.items.is_empty() && none.next.is_none());
    }

    #[test]
    fn refuses_a_bad_number() {
        let parts = parts("/?n=-1");
        assert!(page(&parts, Vec::new(), None).is_err());
    }
}
