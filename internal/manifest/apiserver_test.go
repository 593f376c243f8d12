package manifest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// apiCase is one NetworkPolicy as it was sent to a real API server (1.35), with
// its answer. CodeStrict is that to fieldValidation=Strict.
type apiCase struct {
	Case       string          `json:"case"`
	Spec       json.RawMessage `json:"spec_in"`
	Metadata   map[string]any  `json:"metadata_in"`
	Code       int             `json:"code"`
	CodeStrict int             `json:"code_strict"`
	Warning    *string         `json:"warning"`
	Causes     []struct {
		Field string `json:"field"`
	} `json:"causes"`
	Stored json.RawMessage `json:"spec_stored"`
}

// departures are the cases in which the semantics differ from the API server on
// purpose.
var departures = map[string]struct {
	accept bool
	stored string // the canonical spec, where it is not the stored one
	why    string
}{
	"except equal to cidr":         {true, `{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.0.0.0/8"]}}]}]}`, "S8: accepted with a warning"},
	"ipBlock host bits":            {true, `{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8"}}]}]}`, "S8: masked"},
	"ipBlock leading zeros":        {true, `{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8"}}]}]}`, "canonical form"},
	"ipBlock v4-mapped v6":         {true, `{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8"}}]}]}`, "canonical form"},
	"ipBlock upper-case v6":        {true, `{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"fd00::/64"}}]}]}`, "canonical form"},
	"except host bits":             {true, `{"podSelector":{},"policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"10.0.0.0/8","except":["10.1.1.0/24"]}}]}]}`, "S8: masked"},
	"metadata: namespace mismatch": {true, "", "the 400 is about the request's URL; a file has none"},
}

func readAPICases(t *testing.T) []apiCase {
	t.Helper()
	f, err := os.Open("testdata/api-np-validation.jsonl")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var all []apiCase
	for lines := bufio.NewScanner(f); lines.Scan(); {
		var c apiCase
		if err := json.Unmarshal(lines.Bytes(), &c); err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	if len(all) != 72 {
		t.Fatalf("%d cases, want 72", len(all))
	}
	return all
}

// TestS08APIServer holds Decode, and Policy where the types can carry the case,
// against the API server's verdict, the fields it blames and what it stored.
func TestS08APIServer(t *testing.T) {
	used := map[string]bool{}
	for _, c := range readAPICases(t) {
		t.Run(c.Case, func(t *testing.T) {
			departure, departs := departures[c.Case]
			used[c.Case] = true
			accept := c.Code == 201 && (c.CodeStrict == 201 || c.Metadata != nil)
			if departs {
				accept = departure.accept
			}
			object := map[string]any{"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": map[string]any{"name": "vcase"}}
			if c.Metadata != nil {
				object["metadata"] = c.Metadata
			} else {
				object["spec"] = c.Spec
			}
			text, err := json.Marshal(object)
			if err != nil {
				t.Fatal(err)
			}
			f := Decode("directory", "f.yaml", text)
			if !f.Parsed || len(f.Documents) != 1 {
				t.Fatalf("parsed %v, %d documents: %v", f.Parsed, len(f.Documents), f.Diagnostics)
			}
			doc := f.Documents[0]
			if doc.Valid != accept {
				t.Fatalf("valid = %v, the API server's code is %d: %v", doc.Valid, c.Code, f.Diagnostics)
			}
			if !accept {
				wantFields(t, c, f.Diagnostics)
				return
			}
			if c.Warning != nil && len(f.Diagnostics) == 0 {
				t.Errorf("no warning, the API server says %s", *c.Warning)
			}
			want := string(c.Stored)
			if departs && departure.stored != "" {
				want = departure.stored
			}
			if c.Metadata == nil {
				wantSpec(t, doc.Policy.JSON, want)
			}
			served, ds := Served("api", inventory.KindPolicy, text)
			if !served.Valid || string(served.Policy.JSON) != string(doc.Policy.JSON) {
				t.Errorf("Served differs from Decode: %v", ds)
			}
		})
	}
	for name := range departures {
		if !used[name] {
			t.Errorf("no case %q", name)
		}
	}
}

// wantFields checks that each field the API server blames is blamed.
func wantFields(t *testing.T, c apiCase, ds []Diagnostic) {
	t.Helper()
	for _, cause := range c.Causes {
		found := false
		for _, d := range ds {
			found = found || (d.Severity == Error && strings.HasPrefix(d.Field, cause.Field) && d.Line > 0 && d.Column > 0)
		}
		// An unknown field is told at itself, not as a peer that is missing.
		if !found && c.CodeStrict == 422 {
			t.Errorf("%s is not blamed, but %v", cause.Field, ds)
		}
	}
}

func wantSpec(t *testing.T, got []byte, want string) {
	t.Helper()
	var object struct{ Spec any }
	var spec any
	if err := json.Unmarshal(got, &object); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(want), &spec); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(object.Spec, spec) {
		t.Errorf("spec %v, stored %v", object.Spec, spec)
	}
}

// TestS08APIServerTypes: Served refuses what the types can carry and the API
// server refused.
func TestS08APIServerTypes(t *testing.T) {
	for _, c := range readAPICases(t) {
		if c.Metadata != nil || c.CodeStrict != 422 || departures[c.Case].accept {
			continue
		}
		text := fmt.Appendf(nil, `{"metadata":{"name":"vcase"},"spec":%s}`, c.Spec)
		if doc, _ := Served("api", inventory.KindPolicy, text); doc.Valid {
			t.Errorf("%s: accepted", c.Case)
		}
	}
}
