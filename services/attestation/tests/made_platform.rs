//! Evidence of platforms made up for the purpose: what tokens say of an emulated one, and data bound to evidence.

#[path = "../../../verifier/tests/foundry/mod.rs"]
mod foundry;

use enclos_attestation_service::{
    AttestRequest, AttestationType, Config, Service, ServiceError, TenantContext, TokenFormat,
    jws::{base64url, decode_base64},
};
use foundry::{Made, NOW, Platform};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

struct Instance {
    service: Service,
    quote: Vec<u8>,
    _folder: tempfile::TempDir,
}

/// A service that knows the collateral of a platform, and accepts its root or not.
fn instance(platform: &Platform, accept_root: bool) -> Instance {
    let Made { quote, collateral, root, .. } = platform.make();
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("collateral")).unwrap();
    let collateral = serde_json::to_string(&collateral).unwrap();
    std::fs::write(folder.path().join("collateral/made.json"), collateral).unwrap();
    let roots = if accept_root { format!("emulated_roots = [\"{root}\"]") } else { String::new() };
    let text = format!(
        "listen = \"127.0.0.1:0\"\ndata = \"data\"\ncollateral = \"collateral\"\nevidence_time = \"{NOW}\"\n{roots}\n\
         [[tenant]]\nhost = \"localhost\"\n"
    );
    let path = folder.path().join("service.toml");
    std::fs::write(&path, text).unwrap();
    let service = Service::open(&Config::read(&path).unwrap()).unwrap();
    Instance { service, quote, _folder: folder }
}

impl Instance {
    fn attest(&self, more: Value, format: TokenFormat) -> Result<Value, ServiceError> {
        let tee = enclos_verifier::Quote::parse(&self.quote).unwrap().tee;
        let kind = match tee {
            enclos_verifier::Tee::Tdx => AttestationType::TdxVm,
            _ => AttestationType::SgxEnclave,
        };
        let mut request = json!({ "quote": base64url(&self.quote) });
        request.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let request: AttestRequest = serde_json::from_value(request).unwrap();
        let tenant =
            TenantContext { name: "localhost".into(), issuer: "https://localhost".into(), isolated: false };
        let answer = self.service.attest(&tenant, kind, &request, format)?;
        let token = answer["token"].as_str().unwrap();
        Ok(serde_json::from_slice(&decode_base64(token.split('.').nth(1).unwrap()).unwrap()).unwrap())
    }
}

#[test]
fn emulated_evidence_is_refused_unless_its_root_is_named_and_then_marked() {
    for platform in [Platform::sgx(), Platform::tdx()] {
        let refused = instance(&platform, false).attest(json!({}), TokenFormat::Maa).unwrap_err();
        assert!(
            matches!(&refused, ServiceError::InvalidParameter(reason) if reason.contains("unknown root")),
            "{refused}"
        );

        let accepting = instance(&platform, true);
        let claims = accepting.attest(json!({}), TokenFormat::Maa).unwrap();
        assert_eq!(claims["enclos-emulated"], true);
        let result = accepting.attest(json!({}), TokenFormat::Ear).unwrap();
        let submodule = result["submods"].as_object().unwrap().values().next().unwrap();
        assert_eq!(submodule["ear.status"], "contraindicated");
        assert_eq!(submodule["ear.trustworthiness-vector"]["hardware"], 97);

        let policy = |rules: &str| {
            let text =
                format!("version=1.2; authorizationrules {{ => permit(); {rules} }}; issuancerules {{}};");
            accepting.attest(json!({ "draftPolicyForAttestation": text }), TokenFormat::Maa)
        };
        let denied = policy(r#"[type=="enclos-emulated", value==true] => deny();"#);
        assert!(matches!(denied, Err(ServiceError::PolicyEvaluation(_))));
        let hidden = accepting.attest(
            json!({ "draftPolicyForAttestation":
                r#"version=1.0; authorizationrules { => permit(); }; issuancerules { => issue(type="enclos-emulated", value=false); };"# }),
            TokenFormat::Maa,
        );
        assert!(matches!(hidden, Err(ServiceError::PolicyEvaluation(_))));
    }
}

#[test]
fn data_is_accepted_only_as_bound() {
    let data = br#"{"key":"value"}"#;
    let mut report_data = [0; 64];
    report_data[..32].copy_from_slice(&Sha256::digest(data));
    for (platform, held) in [(Platform::sgx(), true), (Platform::tdx(), false)] {
        let instance = instance(&Platform { report_data, ..platform }, true);
        let attest = |data: &[u8], kind: &str| {
            let input = json!({ "runtimeData": { "data": base64url(data), "dataType": kind } });
            instance.attest(input, TokenFormat::Maa)
        };
        assert_eq!(attest(data, "JSON").unwrap()["x-ms-runtime"], json!({ "key": "value" }));
        let binary = attest(data, "Binary").unwrap();
        for name in ["x-ms-sgx-ehd", "maa-ehd", "aas-ehd"] {
            assert_eq!(binary.get(name).and_then(Value::as_str), held.then_some(base64url(data)).as_deref());
        }
        assert_eq!(binary.get("x-ms-runtime"), None);
        for (other, kind) in [(&b"{}"[..], "JSON"), (&b"x"[..], "Binary"), (data, "Text")] {
            let error = attest(other, kind).unwrap_err();
            assert!(matches!(error, ServiceError::InvalidParameter(_)), "{error}");
        }
        let error = instance
            .attest(
                json!({ "initTimeData": { "data": base64url(data), "dataType": "JSON" } }),
                TokenFormat::Maa,
            )
            .unwrap_err();
        assert!(error.to_string().starts_with("initTimeData"), "{error}");
    }
}
