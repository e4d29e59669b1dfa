//! What a URL asks for.

use http::Method;
use percent_encoding::percent_decode_str;

use super::registry::resource::Resource;
use super::status::ApiError;

/// The part of a path behind `/clusters/<id>`, understood.
#[derive(Debug)]
pub enum Target {
    /// Discovery, version, health, OpenAPI: by path.
    Information(String),
    Objects(Objects),
}

/// A collection, an object or a subresource.
#[derive(Debug)]
pub struct Objects {
    pub resource: &'static Resource,
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

/// Splits `/clusters/<id>/rest` into the id and `/rest`.
pub fn split_cluster(path: &str) -> Option<(&str, &str)> {
    let rest = path.trim_start_matches('/').strip_prefix("clusters/")?;
    let end = rest.find('/').unwrap_or(rest.len());
    let (id, path) = rest.split_at(end);
    (!id.is_empty()).then_some((id, if path.is_empty() { "/" } else { path }))
}

impl Target {
    pub fn parse(path: &str) -> Result<Target, ApiError> {
        let decoded: Vec<String> = path
            .split('/')
            .filter(|part| !part.is_empty())
            .map(|part| percent_decode_str(part).decode_utf8_lossy().into_owned())
            .collect();
        let parts: Vec<&str> = decoded.iter().map(String::as_str).collect();
        let (group, version, rest) = match parts.as_slice() {
            ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
            ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
            _ => return Ok(Target::Information(path.to_owned())),
        };
        let objects = match rest {
            // A namespace's own subresources, before the objects inside it.
            ["namespaces", name, sub @ ("status" | "finalize")] => {
                find(group, version, "namespaces", None, Some(name), Some(sub))
            }
            ["namespaces", namespace, plural] => {
                find(group, version, plural, Some(namespace), None, None)
            }
            ["namespaces", namespace, plural, name] => {
                find(group, version, plural, Some(namespace), Some(name), None)
            }
            ["namespaces", namespace, plural, name, sub] => find(
                group,
                version,
                plural,
                Some(namespace),
                Some(name),
                Some(sub),
            ),
            [plural] => find(group, version, plural, None, None, None),
            [plural, name] => find(group, version, plural, None, Some(name), None),
            [plural, name, sub] => find(group, version, plural, None, Some(name), Some(sub)),
            _ => None,
        };
        objects
            .map(Target::Objects)
            .ok_or_else(ApiError::no_such_path)
    }
}

fn find(
    group: &str,
    version: &str,
    plural: &str,
    namespace: Option<&str>,
    name: Option<&str>,
    subresource: Option<&str>,
) -> Option<Objects> {
    let resource = Resource::find(group, version, plural)?;
    // Only a list over all namespaces leaves the namespace out.
    let fits = match (resource.namespaced, namespace) {
        (true, None) => name.is_none(),
        (true, Some(_)) | (false, None) => true,
        (false, Some(_)) => false,
    };
    fits.then(|| Objects {
        resource,
        namespace: namespace.map(str::to_owned),
        name: name.map(str::to_owned),
        subresource: subresource.map(str::to_owned),
    })
}

/// The query of a URL, by name.
#[derive(Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(query: &str) -> Query {
        let decode = |text: &str| {
            let spaced = text.replace('+', " ");
            percent_decode_str(&spaced).decode_utf8_lossy().into_owned()
        };
        Query(
            query
                .split('&')
                .filter(|pair| !pair.is_empty())
                .map(|pair| {
                    let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(name), decode(value))
                })
                .collect(),
        )
    }

    /// The value, or empty.
    pub fn get(&self, name: &str) -> &str {
        self.0
            .iter()
            .find(|(key, _)| key == name)
            .map_or("", |(_, value)| value.as_str())
    }

    pub fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), "true" | "1")
    }

    pub fn number(&self, name: &str) -> Result<Option<i64>, ApiError> {
        match self.get(name) {
            "" => Ok(None),
            text => text
                .parse()
                .map(Some)
                .map_err(|_| ApiError::bad_request(format!("invalid value for {name}: {text:?}"))),
        }
    }
}

/// The verb, as authorization and its refusals name it.
pub fn verb(method: &Method, objects: &Objects, query: &Query) -> &'static str {
    match (method, &objects.name) {
        (&Method::GET | &Method::HEAD, _) if query.flag("watch") => "watch",
        (&Method::GET | &Method::HEAD, Some(_)) => "get",
        (&Method::GET | &Method::HEAD, None) => "list",
        (&Method::POST, _) => "create",
        (&Method::PUT, _) => "update",
        (&Method::PATCH, _) => "patch",
        (&Method::DELETE, Some(_)) => "delete",
        (&Method::DELETE, None) => "deletecollection",
        _ => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Plural, namespace, name and subresource.
    type Found<'a> = (&'a str, Option<&'a str>, Option<&'a str>, Option<&'a str>);

    #[test]
    fn paths_name_objects() {
        let check = |path: &str, expect: Option<Found<'_>>| {
            let found = match Target::parse(path) {
                Ok(Target::Objects(objects)) => Some(objects),
                Ok(Target::Information(_)) | Err(_) => None,
            };
            let found = found.as_ref().map(|objects| {
                (
                    objects.resource.plural,
                    objects.namespace.as_deref(),
                    objects.name.as_deref(),
                    objects.subresource.as_deref(),
                )
            });
            assert_eq!(found, expect, "{path}");
        };
        check("/api/v1/nodes", Some(("nodes", None, None, None)));
        check(
            "/api/v1/nodes/a/status",
            Some(("nodes", None, Some("a"), Some("status"))),
        );
        check("/api/v1/pods", Some(("pods", None, None, None)));
        check("/api/v1/namespaces", Some(("namespaces", None, None, None)));
        check(
            "/api/v1/namespaces/a",
            Some(("namespaces", None, Some("a"), None)),
        );
        check(
            "/api/v1/namespaces/a/pods",
            Some(("pods", Some("a"), None, None)),
        );
        check(
            "/api/v1/namespaces/a/pods/b",
            Some(("pods", Some("a"), Some("b"), None)),
        );
        check(
            "/api/v1/namespaces/a/finalize",
            Some(("namespaces", None, Some("a"), Some("finalize"))),
        );
        check(
            "/apis/api.clever-cloud.com/v1/nodegroups/a/scale",
            Some(("nodegroups", None, Some("a"), Some("scale"))),
        );
        check("/api/v1/pods/b", None);
        check("/api/v1/namespaces/a/nodes", None);
        check("/api/v2/pods", None);
        check("/apis", None);
    }

    #[test]
    fn the_cluster_comes_first() {
        let check = |path: &str, expect: Option<(&str, &str)>| {
            assert_eq!(split_cluster(path), expect, "{path}");
        };
        check("/clusters/k/api/v1", Some(("k", "/api/v1")));
        check("/clusters/k", Some(("k", "/")));
        check("/clusters/", None);
        check("/api/v1", None);
    }
}
