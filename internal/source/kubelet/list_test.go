package kubelet

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"testing"

	"edgepolicy.io/edgepolicyd/tests/stub"
)

func TestSplit(t *testing.T) {
	for _, c := range []struct{ body, want string }{
		{`{"kind":"PodList","apiVersion":"v1","metadata":{},"items":null}`, ""},
		{`{"kind":"PodList"}`, ""},
		{` { "items" : [ ] , "kind" : "PodList" } ` + "\n", ""},
		{`{"kind":"PodList","items":[{"a":"}]\\"},{"b":[1,{"c":"\"]"}]}]}`, `{"a":"}]\\"}|{"b":[1,{"c":"\"]"}]}`},
		{"{\"kind\":\"PodList\",\n\t\"items\": [ {} , 7,\"x\" ,null]}", `{}|7|"x"|null`},
		{`{"kind":"PodList","items":[{}`, "error"},
		{`{"kind":"PodList","items":[{},]}`, "error"},
		{`{"kind":"PodList","items":[,{}]}`, "error"},
		{`{"kind":"PodList","items":[{} {}]}`, "error"},
		{`{"kind":"PodList","items":"x"}`, "error"},
		{`{"kind":"PodList","items":[]`, "error"},
		{`{"kind":"PodList","items":[]}x`, "error"},
		{`{"kind":"PodLis`, "error"},
		{`{"items":[]}`, "error"},
		{`{"kind":"Status"}`, "error"},
		{`{`, "error"}, {`{}`, "error"}, {`[]`, "error"}, {``, "error"},
		{`{"kind":"PodList","items":[` + strings.Repeat("{},", maxPods) + `{}]}`, "error"},
	} {
		items, err := split([]byte(c.body))
		got := string(bytes.Join(items, []byte("|")))
		if err != nil {
			got = "error"
		}
		if got != c.want {
			t.Errorf("%.100s: %.100s (%v), want %s", c.body, got, err, c.want)
		}
	}
}

// Of what is JSON, split finds what encoding/json does; of what is not, it finds
// parts of it or an error.
func FuzzList(f *testing.F) {
	f.Add(recorded(f, "kubelet-pods-restart-0.json"))
	f.Add(recorded(f, "kubelet-pods-restart-1.json"))
	f.Add([]byte(`{"kind":"PodList","items":[{"a":"}]\\"},{"b":[1,{"c":"\"]"}]},1e5,true]}`))
	f.Add([]byte("{\"kind\":\"PodList\",\"items\":[{},{}\x00]}"))
	f.Fuzz(func(t *testing.T, body []byte) {
		items, err := split(body)
		s := &Source{cfg: Config{PolicyAnnotation: true}}
		for _, raw := range items {
			if err == nil && len(raw) == 0 {
				t.Fatal("an item of nothing")
			}
			if it := s.decode(raw); it.pod == nil && it.rejected.Reason == "" {
				t.Fatalf("rejected without a reason: %q", raw)
			}
		}
		var object map[string]json.RawMessage
		var want []json.RawMessage
		if json.Unmarshal(body, &object) != nil || bytes.Contains(body, []byte(`\u`)) || bytes.Count(body, []byte(`"items"`)) > 1 ||
			string(object["kind"]) != `"PodList"` || json.Unmarshal(object["items"], &want) != nil && object["items"] != nil || len(want) > maxPods {
			return
		}
		if err != nil || !slices.EqualFunc(items, want, func(a []byte, b json.RawMessage) bool { return bytes.Equal(a, b) }) {
			t.Fatalf("%q, %v; want %q", items, err, want)
		}
	})
}

// many gives the recorded items n times under other names.
func many(tb testing.TB, n int) []json.RawMessage {
	items := stub.Items(recorded(tb, "kubelet-pods-10255.json"))
	all := make([]json.RawMessage, n)
	for i := range all {
		r := strings.NewReplacer(`-gw","namespace"`, fmt.Sprintf(`-%d","namespace"`, i), `"10.88.0.`, fmt.Sprintf(`"10.%d.0.`, i/8), `"fd88::`, fmt.Sprintf(`"fd%02x::`, i/8))
		all[i] = []byte(r.Replace(string(items[i%len(items)])))
	}
	return all
}

// A poll of 110 pods of which none has changed, the list in a new order.
func BenchmarkUnchanged(b *testing.B) {
	s, w := wired(b, Config{}, nil)
	w.SetItems(many(b, 110)...)
	first := refresh(b, s)
	if len(first.Objects.Pods) != 110 {
		b.Fatal(describe(first))
	}
	for b.Loop() {
		if r := refresh(b, s); r.Time != first.Time {
			b.Fatal(describe(r))
		}
	}
}

// The same without the exchange with the stub.
func BenchmarkUnchangedList(b *testing.B) {
	s, w := wired(b, Config{}, nil)
	items := many(b, 110)
	w.SetItems(items...)
	first := refresh(b, s)
	body := slices.Clone(s.buf.Bytes())
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		list, err := split(body)
		if err != nil {
			b.Fatal(err)
		}
		s.take(first.Time, answer{}, list)
	}
	if s.report.Time != first.Time {
		b.Fatal("it changed")
	}
}

// One of 110 pods has changed.
func BenchmarkOneChanged(b *testing.B) {
	s, w := wired(b, Config{}, nil)
	items := many(b, 110)
	w.SetItems(items...)
	before := refresh(b, s)
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		changed := slices.Clone(items)
		changed[1] = []byte(strings.Replace(string(items[1]), `"tier":"front"`, fmt.Sprintf(`"tier":"t%d"`, i), 1))
		w.SetItems(changed...)
		b.StartTimer()
		r := refresh(b, s)
		if r.Time == before.Time {
			b.Fatal("the change was not seen")
		}
		before = r
	}
}
