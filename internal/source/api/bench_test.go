package api

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"

	"edgepolicy.io/edgepolicyd/tests/stub"
)

// managed is what API servers say of an object's managers: half of its bytes.
const managed = `"managedFields":[{"manager":"kubectl-client-side-apply","operation":"Update","apiVersion":"networking.k8s.io/v1","time":"2026-11-20T11:41:10Z","fieldsType":"FieldsV1",` +
	`"fieldsV1":{"f:metadata":{"f:annotations":{".":{},"f:kubectl.kubernetes.io/last-applied-configuration":{}},"f:labels":{".":{},"f:managed-by":{}}},"f:spec":{"f:egress":{},"f:ingress":{},"f:podSelector":{},"f:policyTypes":{}}}}],`

// gateway gives a server with what a large gateway has.
func gateway() *stub.API {
	a := stub.NewAPI()
	for i := range 200 {
		a.Put(strings.Replace(namespace(fmt.Sprintf("ns-%03d", i), "t"), `{"name"`, `{`+managed+`"name"`, 1))
	}
	for i := range 1000 {
		p := strings.Replace(policy(fmt.Sprintf("p-%04d", i), "web"), `{"name"`, `{`+managed+`"name"`, 1)
		a.Put(strings.Replace(p, `"policyTypes"`, fmt.Sprintf(`"ingress":[{"from":[{"podSelector":{"matchLabels":{"app":"a%d"}}},{"ipBlock":{"cidr":"10.%d.%d.0/24"}}],"ports":[{"protocol":"TCP","port":80}]}],"policyTypes"`, i, i/250, i%250), 1))
	}
	for i := range 110 {
		a.Put(strings.Replace(pod(fmt.Sprintf("pod-%03d", i), "gw", fmt.Sprintf("10.0.0.%d", i+1)), `{"name"`, `{`+managed+`"name"`, 1))
	}
	return a
}

func inUse() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// BenchmarkFirstList: 1,000 policies, 200 namespaces and 110 pods, from nothing to a
// report, and the memory that each of them takes from then on.
func BenchmarkFirstList(b *testing.B) {
	url := benchServer(b)
	var s *Source
	before := inUse()
	for b.Loop() {
		s = newSource(b, Config{Server: url}, nil)
		refresh(b, s)
	}
	b.ReportMetric(float64(inUse()-before)/1310, "bytes/object")
	runtime.KeepAlive(s)
}

// BenchmarkPoll: the same list again, as where nothing can be watched.
func BenchmarkPoll(b *testing.B) {
	s := newSource(b, Config{Server: benchServer(b)}, nil)
	refresh(b, s)
	for b.Loop() {
		refresh(b, s)
	}
}

func refresh(b *testing.B, s *Source) {
	s.times.refresh = generous
	r, err := s.Refresh(b.Context())
	if err != nil || len(r.Objects.Policies) != 1000 || len(r.Objects.Namespaces) != 200 || len(r.Objects.Pods) != 110 {
		b.Fatalf("%d policies, %v %v %v", len(r.Objects.Policies), err, r.Err, r.Rejected)
	}
}

// benchServer serves the lists as texts, so that the server costs little.
func benchServer(b *testing.B) string {
	a := gateway()
	var mu sync.Mutex
	texts := map[string][]byte{}
	return "http://" + serve(b, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		mu.Lock()
		text := texts[q.URL.String()]
		mu.Unlock()
		if text == nil {
			answer := httptest.NewRecorder()
			a.ServeHTTP(answer, q)
			text = answer.Body.Bytes()
			mu.Lock()
			texts[q.URL.String()] = text
			mu.Unlock()
		}
		_, _ = w.Write(text) // the client may be gone
	}))
}
