// Package stub holds servers that answer as a gateway's kubelet and API server
// do, with the faults that were recorded of real ones, for tests.
package stub

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Kubelet answers GET /pods as a kubelet does: the pods in a new order each
// time. It is ready to serve after NewKubelet, with no pods; all its methods may
// be called while it serves.
type Kubelet struct {
	mu      sync.Mutex
	items   []json.RawMessage
	null    bool
	status  int
	body    string
	delay   time.Duration
	token   string
	cert    bool
	polls   int
	server  *http.Server
	serving sync.WaitGroup
}

// NewKubelet gives a kubelet that has no pods and serves nobody yet.
func NewKubelet() *Kubelet { return &Kubelet{} }

// SetPods replaces the pods.
func (k *Kubelet) SetPods(pods ...Pod) {
	items := make([]json.RawMessage, len(pods))
	for i, p := range pods {
		items[i] = p.JSON()
	}
	k.SetItems(items...)
}

// SetItems replaces the pods by items as they stand in a PodList.
func (k *Kubelet) SetItems(items ...json.RawMessage) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.items, k.null = slices.Clone(items), false
}

// SetList replaces the pods by those of a recorded answer. It panics if that is
// not a PodList.
func (k *Kubelet) SetList(list []byte) { k.SetItems(Items(list)...) }

// Items gives the items of a PodList. It panics if it is none.
func Items(list []byte) []json.RawMessage {
	var l struct{ Items []json.RawMessage }
	if err := json.Unmarshal(list, &l); err != nil {
		panic("stub: not a PodList: " + err.Error())
	}
	return l.Items
}

// Null makes the kubelet answer "items":null, as a real one does in the first
// 0.35 s after its start, until pods are set again.
func (k *Kubelet) Null() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.null = true
}

// Fail makes the kubelet answer every request with a status and a text; status 0
// ends that.
func (k *Kubelet) Fail(status int, body string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.status, k.body = status, body
}

// Delay makes the kubelet wait before it answers.
func (k *Kubelet) Delay(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.delay = d
}

// RequireToken makes the kubelet answer 401 to who does not show the bearer
// token; "" ends that.
func (k *Kubelet) RequireToken(token string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.token = token
}

// RequireCertificate makes the kubelet answer 401 to who showed no certificate
// that the ClientCAs of ServeTLS vouch for. As with a real kubelet the handshake
// succeeds all the same.
func (k *Kubelet) RequireCertificate() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.cert = true
}

// Polls says how often the kubelet was asked for anything.
func (k *Kubelet) Polls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.polls
}

// ServeHTTP answers a request.
func (k *Kubelet) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	k.mu.Lock()
	k.polls++
	status, body, delay := k.status, k.body, k.delay
	authorized := (k.token == "" || r.Header.Get("Authorization") == "Bearer "+k.token) && (!k.cert || vouched(r.TLS, k.server))
	list := k.list()
	k.mu.Unlock()
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-r.Context().Done():
			return
		}
	}
	switch {
	case status != 0:
		text(w, status, body)
	case !authorized:
		text(w, http.StatusUnauthorized, "Unauthorized")
	case strings.TrimSuffix(r.URL.Path, "/") != "/pods":
		text(w, http.StatusNotFound, "404 page not found\n")
	case r.Method != http.MethodGet:
		text(w, http.StatusMethodNotAllowed, "405: Method Not Allowed")
	default:
		w.Header().Set("Content-Type", "application/json")
		_, _ = w.Write(list)
	}
}

func text(w http.ResponseWriter, status int, body string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	_, _ = io.WriteString(w, body)
}

// vouched says whether the client showed a certificate of a known CA. A kubelet
// looks at it for each request, not in the handshake.
func vouched(state *tls.ConnectionState, server *http.Server) bool {
	if state == nil || len(state.PeerCertificates) == 0 || server == nil || server.TLSConfig == nil {
		return false
	}
	_, err := state.PeerCertificates[0].Verify(verifyOptions(server.TLSConfig))
	return err == nil
}

// list gives the PodList, in a new order.
func (k *Kubelet) list() []byte {
	const head, tail = `{"kind":"PodList","apiVersion":"v1","metadata":{},"items":`, "}\n"
	if k.null || len(k.items) == 0 {
		return []byte(head + "null" + tail)
	}
	b := []byte(head)
	for i, at := range rand.Perm(len(k.items)) {
		b = append(b, "[,"[min(i, 1)])
		b = append(b, k.items[at]...)
	}
	return append(b, "]"+tail...)
}

// Serve answers over plain HTTP on a listener, as port 10255 does, until Close.
func (k *Kubelet) Serve(l net.Listener) { k.serve(&http.Server{}, l) }

// ServeTLS answers over TLS on a listener, HTTP/2 included, as port 10250 does,
// until Close. config holds the server's Certificates, and ClientCAs where
// RequireCertificate is used.
func (k *Kubelet) ServeTLS(l net.Listener, config *tls.Config) {
	config = config.Clone()
	config.ClientAuth = cmp.Or(config.ClientAuth, tls.RequestClientCert)
	k.serve(&http.Server{TLSConfig: config}, l)
}

func (k *Kubelet) serve(s *http.Server, l net.Listener) {
	s.Handler, s.ErrorLog = k, log.New(io.Discard, "", 0)
	k.mu.Lock()
	k.server = s
	k.mu.Unlock()
	k.serving.Go(func() {
		if s.TLSConfig != nil {
			_ = s.ServeTLS(l, "", "")
		} else {
			_ = s.Serve(l)
		}
	})
}

// Close ends Serve at once, connections included: from then on the port refuses.
// Serve may be called again, which is a restart.
func (k *Kubelet) Close() {
	k.mu.Lock()
	s := k.server
	k.server = nil
	k.mu.Unlock()
	if s != nil {
		_ = s.Close()
	}
	k.serving.Wait()
}
