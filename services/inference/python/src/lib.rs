//! The verifying client of the inference service, for Python: verification, encryption and HTTP. What tensors look like is
//! written in Python, beside numpy.

#![forbid(unsafe_code)]

use enclos_inference::client::{Client, ClientError, Demands, Http, Request, Verified};
use enclos_inference::version;
use enclos_verifier::{Collateral, Policy};
use pyo3::create_exception;
use pyo3::exceptions::{PyException, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;
use serde_json::json;

create_exception!(
    _native,
    InferenceError,
    PyException,
    "No answer: the host cannot be reached, or answers in the enclave's place."
);
create_exception!(
    _native,
    Refused,
    InferenceError,
    "The server is not accepted; nothing was sent to it. The second argument is the verdict, JSON."
);

/// A server that is verified before anything is sent to it.
#[pyclass(frozen)]
struct Connection(Client<Http>);

#[pymethods]
impl Connection {
    /// Sends nothing yet. `policy` is TOML, or JSON if it begins with a brace; `collateral` is a file, read at each verification;
    /// `models` are SHA-256, hexadecimal.
    #[new]
    fn new(url: &str, policy: &str, collateral: String, models: Vec<String>) -> PyResult<Self> {
        let policy = match policy.trim_start().starts_with('{') {
            true => Policy::from_json(policy),
            false => Policy::from_toml(policy),
        };
        let policy = policy.map_err(|e| PyValueError::new_err(format!("the policy is not usable: {e}")))?;
        let read = move || {
            let json = std::fs::read(&collateral).map_err(|e| format!("cannot read {collateral}: {e}"))?;
            Collateral::from_json(&json).map_err(|e| format!("{collateral} is not usable: {e}"))
        };
        let models = models.iter().map(|text| {
            let mut hash = [0; 32];
            match hex::decode_to_slice(text, &mut hash) {
                Ok(()) => Ok(hash),
                Err(_) => Err(PyValueError::new_err(format!("{text:?} is no SHA-256 in hexadecimal digits"))),
            }
        });
        let models = models.collect::<PyResult<_>>()?;
        Ok(Self(Client::new(Http::at(url), Demands { policy, collateral: Box::new(read), models })))
    }

    /// Who answers and why it was accepted, JSON. Verifies if nobody is accepted now.
    fn verdict(&self, py: Python<'_>) -> PyResult<String> {
        py.detach(|| self.0.verified()).map(|verified| describe(&verified)).map_err(to_python)
    }

    /// One request of the Open Inference Protocol. `header` is how much of the body is JSON, if tensors follow in binary. Gives
    /// the status, JSON, the tensors behind it, and who answered.
    fn ask<'py>(
        &self,
        py: Python<'py>,
        method: &str,
        path: &str,
        body: Vec<u8>,
        header: Option<usize>,
    ) -> PyResult<(u16, Bound<'py, PyBytes>, Bound<'py, PyBytes>, String)> {
        let mut request = match header {
            Some(length) => Request::post_binary(path, length, body),
            None if body.is_empty() => Request::get(path),
            None => Request::post(path, body),
        };
        request.method = method.into();
        let (response, verified) = py.detach(|| self.0.ask(&request)).map_err(to_python)?;
        let (json, binary) = response.parts().map_err(to_python)?;
        Ok((response.status, PyBytes::new(py, json), PyBytes::new(py, binary), describe(&verified)))
    }
}

fn describe(verified: &Verified) -> String {
    let models = verified.models().iter().map(|m| json!({ "name": m.name, "sha256": version(&m.sha256) }));
    let models: Vec<_> = models.collect();
    let mut said = json!(verified.verdict());
    said["models"] = json!(models);
    said.to_string()
}

fn to_python(error: ClientError) -> PyErr {
    match &error {
        ClientError::Refused(verdict) => Refused::new_err((error.to_string(), json!(verdict).to_string())),
        ClientError::OtherModel { .. } => Refused::new_err((error.to_string(), "null".to_owned())),
        _ => InferenceError::new_err(error.to_string()),
    }
}

#[pymodule]
fn _native(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Connection>()?;
    module.add("InferenceError", module.py().get_type::<InferenceError>())?;
    module.add("Refused", module.py().get_type::<Refused>())
}
