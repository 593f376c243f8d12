package manifest

import (
	"encoding/json"
	"os"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// items reads a recorded list.
func items(t *testing.T, file string) []json.RawMessage {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var list struct{ Items []json.RawMessage }
	if err := json.Unmarshal(data, &list); err != nil {
		t.Fatal(err)
	}
	return list.Items
}

// A mirror of a static pod has the uid that the kubelet and the CNI plugins know
// it by; what is not read, and what is newer, loses nothing.
func TestServedPods(t *testing.T) {
	uids := map[string]string{}
	for _, item := range items(t, "testdata/api-pods-with-mirror-pods.json") {
		doc, ds := Served("api", inventory.KindPod, item)
		if !doc.Valid || len(ds) > 0 {
			t.Errorf("%s: %v", doc.Key, ds)
			continue
		}
		uids[doc.Key.String()] = doc.Pod.UID
		if doc.Pod.Node != "gw" || doc.Pod.Origin.Source != "api" {
			t.Errorf("%s: node %q, origin %v", doc.Key, doc.Pod.Node, doc.Pod.Origin)
		}
		again := Decode("api", "", doc.Pod.JSON)
		if len(again.Documents) != 1 || !again.Documents[0].Valid || string(again.Documents[0].Pod.JSON) != string(doc.Pod.JSON) ||
			again.Documents[0].Pod.UID != doc.Pod.UID || again.Documents[0].Pod.Node != doc.Pod.Node {
			t.Errorf("%s: Decode of %s differs: %v", doc.Key, doc.Pod.JSON, again.Diagnostics)
		}
	}
	if uids["default/client-gw"] != "4f31067efe2a6b39180ea7248eebf4c3" || uids["shop/apipod"] != "06e38d9a-5261-4fa3-b666-66e590f46b9b" {
		t.Errorf("uids: %v", uids)
	}
}

func TestServedErrors(t *testing.T) {
	for text, want := range map[string]string{
		`{"metadata":{"name":"a"},"status":{"podIP":"10.0.0"}}`:                                         "10.0.0",
		`{"metadata":{"name":"a","labels":{"x":1}}}`:                                                    "can't be read",
		`{"metadata":{"name":"a"},"spec":{"containers":7}}`:                                             "can't be read",
		`{"metadata":{"namespace":"b"}}`:                                                                "required",
		`{"metadata":{"name":"a"},"spec":{"containers":[{"ports":[{"name":"UP","containerPort":1}]}]}}`: "UP",
		``: "can't be read",
	} {
		doc, ds := Served("kubelet", inventory.KindPod, []byte(text))
		if doc.Valid || len(ds) == 0 || !strings.Contains(ds[0].String(), want) {
			t.Errorf("%s: %v, want %q", text, ds, want)
		}
	}
	doc, ds := Served("kubelet", inventory.KindPod, []byte(`{"metadata":{"name":"a","zzz":[1]},"spec":{"newField":{}}}`))
	if !doc.Valid || len(ds) > 0 || doc.Key.Namespace != "default" {
		t.Errorf("a newer field: %v", ds)
	}
	if doc, _ := Served("api", inventory.KindNamespace, []byte(`{"metadata":{"name":"a","labels":{"k":"v"}}}`)); !doc.Valid || doc.Namespace.Labels["k"] != "v" || doc.Key != (inventory.Key{Name: "a"}) {
		t.Errorf("namespace: %+v", doc)
	}
}

// A policy may be only tried: its annotation says so, from every source and again
// from the saved form.
func TestEnforcementAnnotation(t *testing.T) {
	for value, want := range map[string]struct{ audit, valid bool }{
		"": {false, true}, "enforce": {false, true}, "audit": {true, true}, "Audit": {false, false}, "off": {false, false},
	} {
		object := `{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a","annotations":{"x":"y","edgepolicy.io/enforcement":"` + value + `"}},"spec":{}}`
		served, _ := Served("api", inventory.KindPolicy, []byte(object))
		f := Decode("directory", "a.yaml", []byte(object))
		written := f.Documents[0]
		for _, doc := range []Document{served, written} {
			if doc.Valid != want.valid || doc.Valid && doc.Policy.Audit != want.audit {
				t.Errorf("%q from %s: valid %t, policy %+v", value, doc.Origin.Source, doc.Valid, doc.Policy)
				continue
			}
			if !doc.Valid {
				continue
			}
			again := Decode("state", "", doc.Policy.JSON)
			if p := again.Documents[0].Policy; p == nil || p.Audit != want.audit {
				t.Errorf("%q from %s, saved and read: %+v", value, doc.Origin.Source, p)
			}
		}
		if !want.valid && (len(f.Diagnostics) != 1 || !strings.Contains(f.Diagnostics[0].String(), "must be enforce or audit")) {
			t.Errorf("%q: %v", value, f.Diagnostics)
		}
	}
}
