use super::*;

fn service(kind: &str, value: impl Into<Value>) -> Claim {
    Claim::of_service(kind, value)
}

fn enclave() -> Vec<Claim> {
    vec![
        service("x-ms-attestation-type", "sgx"),
        service("x-ms-sgx-is-debuggable", false),
        service("x-ms-sgx-product-id", 4639),
        service("x-ms-sgx-svn", 7),
        service("x-ms-sgx-mrsigner", "aa"),
        service(
            "json",
            r#"{"values":[0,1,2,3,4],"name":"Bar","flags":[true,true],"mixed":[0,"abc",true,null]}"#,
        ),
    ]
}

fn run(policy: &str) -> Result<Outcome, EvaluationError> {
    Policy::parse(policy).unwrap_or_else(|error| panic!("{error}\n{policy}")).evaluate(enclave())
}

fn authorize(rules: &str) -> bool {
    let policy = format!("version=1.2; authorizationrules {{ {rules} }}; issuancerules {{}};");
    match run(&policy) {
        Ok(_) => true,
        Err(EvaluationError::Denied { .. }) => false,
        Err(error) => panic!("{error}\n{policy}"),
    }
}

/// Claims issued by rules, written `type=value`.
fn issue(rules: &str) -> Result<Vec<String>, String> {
    let policy = format!("version=1.2; authorizationrules {{ =>permit(); }}; issuancerules {{\n{rules}\n}};");
    let outcome = run(&policy).map_err(|error| error.to_string())?;
    Ok(outcome
        .issued
        .iter()
        .map(|claim| match &claim.value {
            Value::String(text) => format!("{}={text:?}", claim.kind),
            Value::Integer(number) => format!("{}={number}", claim.kind),
            Value::Boolean(truth) => format!("{}={truth}", claim.kind),
        })
        .collect())
}

#[test]
fn conditions() {
    for (rules, permitted) in [
        ("=> permit();", true),
        ("", false),
        ("=> deny();", false),
        ("=> permit(); => deny();", false),
        ("=> deny(); => permit();", false),
        (r#"[type=="x-ms-sgx-svn"] => permit();"#, true),
        (r#"[type="x-ms-sgx-svn"] => permit();"#, true),
        (r#"[type=="nothing"] => permit();"#, false),
        (r#"[type!="nothing"] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn", value==7] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn", value=="7"] => permit();"#, false),
        (r#"[type=="x-ms-sgx-svn", value!=7] => permit();"#, false),
        (r#"[type=="x-ms-sgx-svn", value!="7"] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn", value>6] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn", value>7] => permit();"#, false),
        (r#"[type=="x-ms-sgx-svn", value>=7] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn", value>=8] => permit();"#, false),
        (r#"[type=="x-ms-sgx-svn", value<8] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn", value<7] => permit();"#, false),
        (r#"[type=="x-ms-sgx-svn", value<=7] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn", value<=6] => permit();"#, false),
        (r#"[type=="x-ms-sgx-svn", value>-1] => permit();"#, true),
        // Only integers are ordered.
        (r#"[type=="x-ms-sgx-mrsigner", value>0] => permit();"#, false),
        (r#"[type=="x-ms-sgx-is-debuggable", value==false] => permit();"#, true),
        (r#"[type=="x-ms-sgx-is-debuggable", value==true] => permit();"#, false),
        (r#"[type=="x-ms-sgx-svn", valueType=="Integer"] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn", valueType=="String"] => permit();"#, false),
        (r#"[issuer=="AttestationService", type=="x-ms-sgx-svn"] => permit();"#, true),
        (r#"[issuer=="AttestationPolicy"] => permit();"#, false),
        (r#"=> add(type="mine", value=1); [issuer=="AttestationPolicy"] => permit();"#, true),
        (r#"[type=="x-ms-sgx-svn"] && [type=="nothing"] => permit();"#, false),
        (r#"[type=="x-ms-sgx-svn"] && [type=="json"] => permit();"#, true),
        // A rule sees what the rules before it added, not what those after it add.
        (r#"[type=="mine"] => permit(); => add(type="mine", value=1);"#, false),
        (r#"=> add(type="mine", value=1); [type=="mine", value==1] => permit();"#, true),
        // References between conditions.
        (r#"a:[type=="x-ms-sgx-svn"] && [type=="x-ms-sgx-product-id", value==a.value] => permit();"#, false),
        (r#"a:[type=="x-ms-sgx-svn"] && [type=="x-ms-sgx-product-id", value>a.value] => permit();"#, true),
        (
            r#"a:[type=="x-ms-sgx-svn"] && [type==a.type, value==a.value, issuer==a.issuer] => permit();"#,
            true,
        ),
        // A set: equal to some element, different from every one.
        (
            r#"=>add(type="s",value=7); =>add(type="s",value=8); a:[type=="s"] && [type=="x-ms-sgx-svn", value==a.value] => permit();"#,
            true,
        ),
        (
            r#"=>add(type="s",value=7); =>add(type="s",value=8); a:[type=="s"] && [type=="x-ms-sgx-svn", value!=a.value] => permit();"#,
            false,
        ),
        // Absence.
        (r#"![type=="nothing"] => permit();"#, true),
        (r#"![type=="x-ms-sgx-svn"] => permit();"#, false),
        (r#"![type=="x-ms-sgx-svn", value==8] => permit();"#, true),
        (r#"c:![type=="nothing"] && [type=="x-ms-sgx-svn"] => permit();"#, true),
        // Functions in conditions.
        (
            r#"c:[type=="json"] && [type=="x-ms-sgx-svn", value==JsonToClaimValue(JmesPath(c.value, "length(values)"))] => permit();"#,
            false,
        ),
        (
            r#"c:[type=="json"] && [type=="x-ms-sgx-svn", value>JsonToClaimValue(JmesPath(c.value, "length(values)"))] => permit();"#,
            true,
        ),
    ] {
        assert_eq!(authorize(rules), permitted, "{rules}");
    }
}

#[test]
fn issued_claims() {
    for (rules, expected) in [
        (r#"=> issue(type="a", value=100);"#, &["a=100"][..]),
        (r#"=> issue(type="a", value=true);"#, &["a=true"]),
        (r#"=> issue(value="x", type="a");"#, &[r#"a="x""#]),
        (r#"=> issue(type="a", value="x", valueType="String", issuer="CustomClaim");"#, &[r#"a="x""#]),
        (r#"=> add(type="a", value=100);"#, &[]),
        (r#"=> issueproperty(type="a", value=100);"#, &[]),
        (r#"c:[type=="x-ms-sgx-svn"] => issue(type="svn", value=c.value);"#, &["svn=7"]),
        (r#"c:[type=="x-ms-sgx-svn"] => issue(claim=c);"#, &["x-ms-sgx-svn=7"]),
        (r#"c:[type=="nothing"] => issue(claim=c);"#, &[]),
        (r#"c:![type=="nothing"] => issue(type="none", value=c.value);"#, &[]),
        // A variable is a set: one claim for every value, and no value twice.
        (
            r#"=>add(type="s",value=1); =>add(type="s",value=2); c:[type=="s"] => issue(type="t", value=c.value);"#,
            &["t=1", "t=2"],
        ),
        (r#"=>issue(type="s",value=1); =>issue(type="s",value=1);"#, &["s=1"]),
        // Issuing also adds to the incoming claims.
        (
            r#"=>issue(type="a",value=1); c:[type=="a", issuer=="AttestationPolicy"] => issue(type="b", value=c.value);"#,
            &["a=1", "b=1"],
        ),
        (r#"=>issueproperty(type="a",value=1); c:[type=="a"] => issue(type="b", value=c.value);"#, &["b=1"]),
        (r#"=>issue(type="a\"b\\c\n", value="é\u00e9");"#, &["a\"b\\c\n=\"éé\""]),
        // Functions, after Microsoft's examples.
        (r#"=>issue(type="r", value=JmesPath("{\"foo\": \"bar\"}", "foo"));"#, &[r#"r="\"bar\"""#]),
        (r#"c:[type=="json"] => issue(type="r", value=JmesPath(c.value, "values[2]"));"#, &[r#"r="2""#]),
        (r#"c:[type=="json"] => issue(type="r", value=JmesPath(c.value, "nothing"));"#, &[r#"r="null""#]),
        (r#"=>issue(type="r", value=JsonToClaimValue("100"));"#, &["r=100"]),
        (r#"=>issue(type="r", value=JsonToClaimValue("100.0"));"#, &["r=100"]),
        (r#"=>issue(type="r", value=JsonToClaimValue("true"));"#, &["r=true"]),
        (r#"=>issue(type="r", value=JsonToClaimValue("\"abc\""));"#, &[r#"r="abc""#]),
        (r#"=>issue(type="r", value=JsonToClaimValue("null"));"#, &[]),
        (
            r#"=>issue(type="r", value=JsonToClaimValue("[0, \"abc\", true, null]"));"#,
            &[r#"r="abc""#, "r=0", "r=true"],
        ),
        (
            r#"c:[type=="json"] => issue(type="r", value=JsonToClaimValue(JmesPath(c.value, "values[?@ > `2`]")));"#,
            &["r=3", "r=4"],
        ),
        (
            r#"c:[type=="json"] => issue(type="r", value=ContainsOnlyValue(JsonToClaimValue(JmesPath(c.value, "flags")), true));"#,
            &["r=true"],
        ),
        (
            r#"c:[type=="json"] => issue(type="r", value=ContainsOnlyValue(JsonToClaimValue(JmesPath(c.value, "values")), 1));"#,
            &["r=false"],
        ),
        (r#"=>issue(type="r", value=ContainsOnlyValue(JsonToClaimValue("[]"), 1));"#, &["r=false"]),
        (
            r#"=>issue(type="r", value=IsSubsetOf(JsonToClaimValue("[1,\"a\"]"), JsonToClaimValue("[true,1,\"a\"]")));"#,
            &["r=true"],
        ),
        (
            r#"=>issue(type="r", value=IsSubsetOf(JsonToClaimValue("[1,2]"), JsonToClaimValue("[1]")));"#,
            &["r=false"],
        ),
        (
            r#"=>issue(type="r", value=IsSubsetOf(JsonToClaimValue("[]"), JsonToClaimValue("[1]")));"#,
            &["r=true"],
        ),
        (r#"=>issue(type="r", value=AppendString(AppendString("a", ""), "b"));"#, &[r#"r="ab""#]),
        (r#"=>issue(type="r", value=NegateBool(true));"#, &["r=false"]),
        (
            r#"c:[type=="json"] => issue(type="r", value=JmesPath(c.value, "equals_ignore_case(name, 'bAR')"));"#,
            &[r#"r="true""#],
        ),
        (
            r#"c:[type=="json"] => issue(type="r", value=JmesPath(c.value, "join('-', [name, name])"));"#,
            &[r#"r="\"Bar-Bar\"""#],
        ),
    ] {
        assert_eq!(
            issue(rules).as_deref(),
            Ok(&expected.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()[..]),
            "{rules}"
        );
    }
}

#[test]
fn properties_and_configuration() {
    let policy = Policy::parse(
        r#"version=1.1;
        configurationrules { => issueproperty(type="x-ms-sgx-tcbidentifier", value="17"); };
        authorizationrules { => permit(); };
        Issuancerules { => issueproperty(type="report_validity_in_minutes", value=1440); };"#,
    )
    .unwrap();
    let set = policy.configure(&[]).unwrap();
    assert_eq!(set.len(), 1);
    assert_eq!((set[0].kind.as_str(), &set[0].value), ("x-ms-sgx-tcbidentifier", &Value::from("17")));
    let outcome = policy.evaluate(enclave()).unwrap();
    assert_eq!(outcome.properties.len(), 1);
    assert_eq!(outcome.properties[0].value, Value::Integer(1440));
    assert_eq!(outcome.properties[0].issuer, Issuer::AttestationPolicy);
}

#[test]
fn errors_of_evaluation_name_the_rule() {
    for (rule, reason) in [
        (r#"=>issue(type="r", value=JsonToClaimValue("1.5"));"#, "no 64-bit integer"),
        (r#"=>issue(type="r", value=JsonToClaimValue("{}"));"#, "an object"),
        (r#"=>issue(type="r", value=JsonToClaimValue("[[]]"));"#, "array in an array"),
        (r#"=>issue(type="r", value=JsonToClaimValue("[{}]"));"#, "an object"),
        (r#"=>issue(type="r", value=JsonToClaimValue("abc"));"#, "not JSON"),
        (r#"=>issue(type="r", value=JsonToClaimValue(1));"#, "takes a String"),
        (r#"=>issue(type="r", value=JmesPath("", "a"));"#, "empty"),
        (r#"=>issue(type="r", value=JmesPath("{}", ""));"#, "empty"),
        (r#"=>issue(type="r", value=JmesPath("{", "a"));"#, "not JSON"),
        (r#"=>issue(type="r", value=JmesPath("{}", "a["));"#, "query is not valid"),
        (r#"=>issue(type="r", value=JmesPath("{}", "unknown(a)"));"#, "query failed"),
        (r#"=>issue(type="r", value=NegateBool("true"));"#, "takes a Boolean"),
        (r#"=>issue(type="r", value=AppendString("a", 1));"#, "takes a String"),
        (
            r#"c:[issuer=="AttestationService"] => issue(type="r", value=NegateBool(c.value));"#,
            "single value",
        ),
        (r#"=>issue(type=1, value=1);"#, "takes a String"),
        (r#"=>issue(type="r", value=1, valueType="String");"#, "valueType String"),
        (r#"=>issue(type="r", value=1, issuer="AttestationService");"#, "AttestationPolicy or CustomClaim"),
    ] {
        let error = issue(&format!("=> add(type=\"x\", value=1);\n{rule}")).expect_err(rule);
        assert!(error.contains(reason) && error.contains("line 3"), "{rule}: {error}");
    }
    assert_eq!(
        run("version=1.0; authorizationrules {\n=>deny();}; issuancerules {};"),
        Err(EvaluationError::Denied { line: Some(2) })
    );
    assert_eq!(
        run("version=1.0; authorizationrules {}; issuancerules {};"),
        Err(EvaluationError::Denied { line: None })
    );
}

#[test]
fn read_only_claims_are_compared_but_not_issued() {
    let claims = || vec![Claim { read_only: true, ..service("pcrs", r#"{"a":"b"}"#) }];
    let evaluate = |rules: &str| {
        let text = format!("version=1.2; authorizationrules {{ =>permit(); }}; issuancerules {{ {rules} }};");
        Policy::parse(&text).unwrap().evaluate(claims())
    };
    for refused in [
        r#"c:[type=="pcrs"] => issue(claim=c);"#,
        r#"c:[type=="pcrs"] => issue(type="x", value=c.value);"#,
        r#"c:[type=="pcrs"] => issue(type="x", value=JmesPath(c.value, "a"));"#,
        r#"c:[type=="pcrs"] => issue(type="x", value=AppendString("", c.value));"#,
        r#"c:[type=="pcrs"] => issueproperty(type="x", value=c.value);"#,
        r#"c:[type=="pcrs"] => add(type="y", value=c.value); d:[type=="y"] => issue(claim=d);"#,
    ] {
        let error = evaluate(refused).expect_err(refused).to_string();
        assert!(error.contains("read-only"), "{error}");
    }
    for allowed in [
        r#"c:[type=="pcrs"] => add(type="x", value=c.value);"#,
        r#"c:[type=="pcrs"] => issue(type="x", value=ContainsOnlyValue(c.value, "b"));"#,
        r#"c:[type=="pcrs"] => issue(type="x", value=IsSubsetOf(c.value, c.value));"#,
        r#"c:[type=="pcrs"] => issue(type="x", value=c.type);"#,
    ] {
        evaluate(allowed).expect(allowed);
    }
}

#[test]
fn errors_of_parsing_name_place_and_expectation() {
    for (text, line, column, found, expected) in [
        ("", 1, 1, "<EOF>", "'version'"),
        ("authorizationrules {};", 1, 1, "authorizationrules", "'version'"),
        ("version 1.0;", 1, 9, "1", "'='"),
        ("version=1;", 1, 10, ";", "'.'"),
        ("version=1.0\n[type", 2, 1, "[", "';'"),
        ("version=1.3;", 1, 9, "1.3", "one of the versions 1.0, 1.1, 1.2"),
        ("version=2.0;", 1, 9, "2.0", "one of the versions 1.0, 1.1, 1.2"),
        (
            "version=1.0; configurationrules {};",
            1,
            14,
            "configurationrules",
            "'authorizationrules' or 'issuancerules'",
        ),
        ("version=1.0; authorizationrules { => permit() };", 1, 47, "}", "';'"),
        ("version=1.0; authorizationrules { => permit(); }", 1, 49, "<EOF>", "';'"),
        (
            "version=1.0; authorizationrules {};authorizationrules {};",
            1,
            36,
            "authorizationrules",
            "'issuancerules'",
        ),
        (
            "version=1.0; authorizationrules { => issue(type=\"a\", value=1); };",
            1,
            38,
            "issue",
            "'permit' or 'deny' or 'add'",
        ),
        (
            "version=1.0; issuancerules { => permit(); };",
            1,
            33,
            "permit",
            "'issue' or 'add' or 'issueproperty'",
        ),
        ("version=1.1; configurationrules { => add(type=\"a\",value=1); };", 1, 38, "add", "'issueproperty'"),
        (
            "version=1.0; authorizationrules { [] => permit(); };",
            1,
            36,
            "]",
            "'type', 'value', 'valueType' or 'issuer'",
        ),
        (
            "version=1.0; authorizationrules { [type] => permit(); };",
            1,
            40,
            "]",
            "'==', '!=', '<', '<=', '>' or '>='",
        ),
        ("version=1.0; authorizationrules { [type<\"a\"] => permit(); };", 1, 40, "<", "'==' or '!='"),
        ("version=1.0; authorizationrules { [type==1] => permit(); };", 1, 42, "1", "STRING"),
        (
            "version=1.0; authorizationrules { [value<\"1\"] => permit(); };",
            1,
            42,
            "\"1\"",
            "INTEGER (only integers are ordered)",
        ),
        (
            "version=1.0; authorizationrules { [type==\"a\"]\n|| [type==\"b\"] => permit(); };",
            2,
            1,
            "||",
            "'&&' or '=>'",
        ),
        (
            "version=1.0; authorizationrules { ![type==\"a\"] => permit(); };",
            1,
            35,
            "!",
            "'[' ('!' is of version 1.2)",
        ),
        ("version=1.0; issuancerules { => issue(type=\"a\"); };", 1, 47, ")", "',' and the property 'value'"),
        (
            "version=1.0; issuancerules { => issue(\"a\", value=1); };",
            1,
            39,
            "\"a\"",
            "'type', 'value', 'valueType' or 'issuer'",
        ),
        (
            "version=1.0; issuancerules { => issue(type=\"a\", type=\"b\"); };",
            1,
            49,
            "type",
            "every property once",
        ),
        (
            "version=1.0; issuancerules { => issue(claim=c); };",
            1,
            45,
            "c",
            "no identifier, as no condition before it binds one",
        ),
        (
            "version=1.0; issuancerules { c:[type==\"a\"] => issue(claim=d); };",
            1,
            59,
            "d",
            "an identifier bound by a condition before it (c)",
        ),
        (
            "version=1.0; issuancerules { c:[type==c.type] => issue(claim=c); };",
            1,
            39,
            "c",
            "no identifier, as no condition before it binds one",
        ),
        (
            "version=1.0; issuancerules { c:[type==\"a\"] && c:[type==\"b\"] => issue(claim=c); };",
            1,
            47,
            "c",
            "an identifier that this rule does not use yet",
        ),
        (
            "version=1.0; issuancerules { => issue(type=\"a\", value=JmesPath(\"\",\"\")); };",
            1,
            55,
            "JmesPath",
            "no function call (functions are of version 1.2)",
        ),
        (
            "version=1.2; issuancerules { => issue(type=\"a\", value=NegateBol(true)); };",
            1,
            55,
            "NegateBol",
            "one of the functions JmesPath, JsonToClaimValue, IsSubsetOf, AppendString, NegateBool, ContainsOnlyValue",
        ),
        (
            "version=1.2; issuancerules { => issue(type=\"a\", value=NegateBool(true, true)); };",
            1,
            70,
            ",",
            "')'",
        ),
        (
            "version=1.2; issuancerules { => issue(type=\"a\", value=AppendString(\"a\")); };",
            1,
            71,
            ")",
            "','",
        ),
        (
            "version=1.0; issuancerules { => issue(type=\"a\", value=99999999999999999999); };",
            1,
            55,
            "99999999999999999999",
            "an integer of at most 64 bits",
        ),
        ("version=1.0; issuancerules { => issue(type=\"a", 1, 44, "<EOF>", "'\"' that ends the string"),
        (
            "version=1.0; issuancerules { => issue(type=\"\\q\"); };",
            1,
            45,
            "\\q",
            "one of \\\" \\\\ \\/ \\n \\r \\t \\uXXXX",
        ),
        (
            "version=1.0; issuancerules { => issue(type=\"\\ud800\"); };",
            1,
            45,
            "\\ud800",
            "\\u and the four digits of a character",
        ),
        (
            "version=1.0;\n// é\n\tauthorizationrules { [type==”a”] => permit(); };",
            3,
            30,
            "”",
            "a string in straight double quotes (\")",
        ),
        ("version=1.0; @", 1, 14, "@", "a token of the policy language"),
    ] {
        let error = Policy::parse(text).expect_err(text);
        assert_eq!(
            (error.at.line, error.at.column, error.found.as_str(), error.expected.as_str()),
            (line, column, found, expected),
            "{text}"
        );
        assert!(error.to_string().contains(&format!("mismatched input '{found}' expecting {expected}")));
    }
}

#[test]
fn versions_and_spelling() {
    for text in [
        "version= 1.0;",
        "Version = 1 . 0 ;\nAuthorizationRules{=>Permit();};",
        "\u{feff}version=1.0;\r\nissuancerules\r\n{\r\n};\r\nauthorizationrules {};",
        "version=1.1; configurationrules{=>issueproperty(type=\"a\",value=True);}; authorizationrules{};",
        "// a comment\nversion=1.2;// another\n",
    ] {
        Policy::parse(text).unwrap_or_else(|error| panic!("{error}\n{text}"));
    }
}

#[test]
fn depth_and_work_are_bounded() {
    let nested = |depth: usize| {
        let value = format!("{}true{}", "NegateBool(".repeat(depth), ")".repeat(depth));
        format!(
            "version=1.2; authorizationrules {{ =>permit(); }}; issuancerules {{ =>issue(type=\"a\", value={value}); }};"
        )
    };
    run(&nested(16)).unwrap();
    let error = Policy::parse(&nested(17)).unwrap_err();
    assert!(error.expected.contains("at most 16 deep"), "{error}");
    Policy::parse(&nested(5_000)).unwrap_err();
    Policy::parse(&format!("version=1.0;{}", " ".repeat(MAX_POLICY_LEN))).unwrap_err();

    // Doubling a claim's text for ever.
    let doubling = r#"=>add(type="t0", value="xxxxxxxxxxxxxxxx");"#.to_owned()
        + &(0..40)
            .map(|n| {
                format!(
                    r#"c:[type=="t{n}"] => add(type="t{}", value=AppendString(c.value, c.value));"#,
                    n + 1
                )
            })
            .collect::<String>();
    assert!(issue(&doubling).unwrap_err().contains("bytes"));

    // Queries that copy, join and recurse more and more.
    for (query, reason) in [
        ("[@,@][]|".repeat(30) + "@", "copy its input"),
        ("{a:@,b:@}.*|[]|".repeat(30) + "@", "copy its input"),
        ("join(to_string(@), values)|".repeat(5) + "@", "joins more than"),
        ("!".repeat(300) + "a", "operators"),
        ("a.".repeat(300) + "a", "operators"),
        ("a".repeat(5000), "bytes"),
        ("values[2147483647]".into(), "index"),
        ("values[-2147483648:]".into(), "query"),
        ("values[0:2147483647:2]".into(), "index"),
        ("values[::0]".into(), "query"),
        ("values[99999999999999999999]".into(), "query"),
    ] {
        let rule = format!(r#"c:[type=="json"] => issue(type="r", value=JmesPath(c.value, "{query}"));"#);
        let error = issue(&rule).expect_err(&query);
        assert!(error.contains(reason), "{query}: {error}");
    }
    // The deepest trees that are read, on the stack of a test's thread.
    for query in [
        "!".repeat(199) + "a",
        "(".repeat(199) + "a" + &")".repeat(199),
        "a.".repeat(199) + "a",
        "a[".to_owned() + &"?a[".repeat(90),
    ] {
        let rule = format!(r#"c:[type=="json"] => issue(type="r", value=JmesPath(c.value, "{query}"));"#);
        let _ = issue(&rule);
    }
    let deep = "[".repeat(100_000);
    let rule = format!(r#"=> issue(type="r", value=JmesPath("{deep}", "a"));"#);
    assert!(issue(&rule).unwrap_err().contains("not JSON"));

    // Every claim compared with every claim.
    let many = (0..3000).map(|n| format!("=>add(type=\"t{n}\",value={n});")).collect::<String>()
        + &r#"a:[value>=0] && b:[value<=a.value] && c:[value>=b.value] => add(type="x", value=c.value);"#
            .repeat(30);
    let _ = issue(&many);
}

/// Small generator of pseudo-random numbers (xorshift), so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % bound as u64).expect("a remainder of a usize")
    }
}

#[test]
fn mutated_policies_never_panic() {
    let seeds = [
        r#"version=1.2; configurationrules { => issueproperty(type="x-ms-sgx-tcbidentifier", value="azuredefault"); }; authorizationrules { c:[type=="x-ms-sgx-svn", value>=3] && ![type=="none"] => permit(); }; issuancerules { c:[type=="json"] => issue(type="r", value=ContainsOnlyValue(JsonToClaimValue(JmesPath(c.value, "values[?@ > `2`] | [0:2:-1]")), 1)); c:[type=="x-ms-sgx-svn"] => issue(claim=c); };"#,
        r#"version=1.0; authorizationrules { => permit(); }; issuancerules { c:[type=="json"] => issue(type="r\u00e9\n", value=c.value); // x
        };"#,
        r#"version=1.2; authorizationrules { => permit(); }; issuancerules { c:[type=="json"] => issue(type="r", value=IsSubsetOf(JsonToClaimValue(JmesPath(c.value, "mixed")), JsonToClaimValue(JmesPath(c.value, "*[]|sort_by(@,&@)|max_by(@, &to_string(@))|[-1]")))); };"#,
    ];
    let pieces = [
        "[",
        "]",
        "{",
        "}",
        "(",
        ")",
        "=>",
        "==",
        "&&",
        "!",
        ".",
        ",",
        ";",
        ":",
        "\"",
        "\\",
        "\\u12",
        "//",
        "\n",
        "é",
        "-",
        "0",
        "99999999999",
        "c",
        "c.value",
        "JmesPath(",
        "`",
        "'",
        "|",
        "@",
        "*",
        "[]",
        "[?",
        "&",
        "\u{0}",
        "version",
        "1.2",
        "claim=c",
    ];
    let (mut random, mut parsed, mut evaluated) = (Random(0x9e37_79b9_7f4a_7c15), 0, 0);
    for round in 0..30_000 {
        let mut text: Vec<char> = seeds[round % seeds.len()].chars().collect();
        for _ in 0..=random.below(3) {
            let at = random.below(text.len().max(1));
            match random.below(4) {
                0 if text.len() > 1 => drop(text.remove(at)),
                1 => drop(text.splice(at..at, pieces[random.below(pieces.len())].chars())),
                2 => text.truncate(at.max(1)),
                _ => {
                    let end = (at + random.below(12)).min(text.len());
                    let part: Vec<_> = text[at..end].to_vec();
                    let to = random.below(text.len().max(1)).min(text.len());
                    text.splice(to..to, part);
                }
            }
        }
        let text: String = text.into_iter().collect();
        if let Ok(policy) = Policy::parse(&text) {
            parsed += 1;
            let _ = policy.configure(&enclave());
            evaluated += usize::from(policy.evaluate(enclave()).is_ok());
        }
    }
    // Otherwise the mutations would only have exercised the lexer.
    assert!(parsed > 1000 && evaluated > 300, "{parsed} parsed, {evaluated} evaluated");
}
