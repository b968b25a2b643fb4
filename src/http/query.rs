//! What is wrong with a query: the parameter by its name, and what it may be.

use http::Uri;
use serde::de::DeserializeOwned;
use utoipa::IntoParams;

use super::problem::Problem;

/// Why a query is not read as `T`. A parameter is named where it is one of ours, and nothing else of the query
/// is repeated.
pub fn fault<T: DeserializeOwned + IntoParams>(uri: &Uri) -> Problem {
    let known = T::into_params(|| None);
    let names: Vec<&str> = known.iter().map(|parameter| parameter.name.as_str()).collect();
    let pairs: Vec<&str> = uri.query().unwrap_or_default().split('&').collect();
    let named = |pair: &str| {
        let name = pair.split('=').next().unwrap_or_default();
        known.iter().find(|parameter| parameter.name == name)
    };
    let mut seen = Vec::new();
    for pair in pairs.into_iter().filter(|pair| !pair.is_empty()) {
        let Some(parameter) = named(pair) else {
            let taken = names.join(", ");
            return Problem::malformed(format!(
                "the query has a parameter that is not taken here; it may have {taken}"
            ));
        };
        let name = parameter.name.as_str();
        if seen.contains(&name) {
            return Problem::malformed(format!("the query's {name} is given twice"));
        }
        seen.push(name);
        if !reads_alone::<T>(pair) {
            let may_be = parameter.description.as_deref().unwrap_or("see its description");
            return Problem::malformed(format!(
                "the query's {name} is not what it may be: {may_be}"
            ));
        }
    }
    Problem::malformed("the query is not what this route takes")
}

fn reads_alone<T: DeserializeOwned>(pair: &str) -> bool {
    let alone = Uri::builder().path_and_query(format!("/?{pair}")).build();
    alone.is_ok_and(|uri| axum::extract::Query::<T>::try_from_uri(&uri).is_ok())
}
