package api

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// authority signs certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func block(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}

// sign gives a certificate and its key, in PEM; of a nil authority, one that signs
// itself.
func (a *authority) sign(t *testing.T, name string) (cert, key []byte, made *authority) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: []string{"the-server"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		BasicConstraintsValid: true, IsCA: a == nil, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	parent, signer := template, k
	if a != nil {
		parent, signer = a.cert, a.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &k.PublicKey, signer)
	must(t, err)
	parsed, err := x509.ParseCertificate(der)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(k)
	must(t, err)
	return block("CERTIFICATE", der), block("PRIVATE KEY", keyDER), &authority{parsed, k}
}

// secure is a TLS server that asks for a client certificate or credentials.
type secure struct {
	*httptest.Server
	dir  string // with ca.crt, client.crt, client.key and token
	ca   *authority
	seen sync.Map // what the clients said of themselves
	http atomic.Int32
}

func newSecure(t *testing.T, h http.Handler) *secure {
	t.Helper()
	s := &secure{dir: t.TempDir()}
	var caPEM []byte
	caPEM, _, s.ca = (*authority)(nil).sign(t, "ca")
	cert, key, _ := s.ca.sign(t, "server")
	pair, err := tls.X509KeyPair(cert, key)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AddCert(s.ca.cert)
	s.Server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		name := q.Header.Get("Authorization")
		if certs := q.TLS.PeerCertificates; len(certs) > 0 {
			name = certs[0].Subject.CommonName
		}
		s.http.Store(int32(q.ProtoMajor))
		s.seen.Store(name, true)
		if q.UserAgent() != userAgent {
			t.Errorf("user agent %q", q.UserAgent())
		}
		if name == "" {
			http.Error(w, "Unauthorized", http.StatusUnauthorized)
			return
		}
		h.ServeHTTP(w, q)
	}))
	s.EnableHTTP2 = true
	s.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: pool}
	s.Config.ErrorLog = log.New(io.Discard, "", 0) // of handshakes that are to fail
	s.StartTLS()
	t.Cleanup(func() {
		s.CloseClientConnections()
		s.Close()
	})
	s.write(t, "ca.crt", caPEM)
	s.client(t, "client")
	s.write(t, "token", []byte("sesame\n"))
	return s
}

func (s *secure) write(t *testing.T, name string, text []byte) {
	t.Helper()
	temp := filepath.Join(s.dir, "."+name)
	must(t, os.WriteFile(temp, text, 0o600))
	must(t, os.Rename(temp, filepath.Join(s.dir, name)))
}

func (s *secure) client(t *testing.T, name string) {
	t.Helper()
	cert, key, _ := s.ca.sign(t, name)
	s.write(t, "client.crt", cert)
	s.write(t, "client.key", key)
	s.write(t, "both.pem", append(cert, key...)) // as kubelet-client-current.pem
}

func (s *secure) read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(s.dir, name))
	must(t, err)
	return base64.StdEncoding.EncodeToString(text)
}

// config writes a kubeconfig, and gives its path.
func (s *secure) config(t *testing.T, cluster, user string) string {
	t.Helper()
	text := fmt.Sprintf(`apiVersion: v1
kind: Config
preferences: {}
current-context: here
contexts:
- {name: other, context: {cluster: none, user: none}}
- {name: here, context: {cluster: local, user: me, namespace: whatever}}
clusters:
- name: local
  cluster: {server: %q, %s}
users:
- name: me
  user: {%s}
`, s.URL, cluster, user)
	s.write(t, "kubeconfig", []byte(text))
	return filepath.Join(s.dir, "kubeconfig")
}

const byName = `tls-server-name: the-server`

func TestKubeconfigs(t *testing.T) {
	s := newSecure(t, filled())
	ca := byName + ", certificate-authority: ca.crt"
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte("u:12345"))
	for name, c := range map[string]struct{ cluster, user, is string }{
		"files":           {ca, "client-certificate: client.crt, client-key: client.key", "client"},
		"one file":        {ca, "client-certificate: both.pem, client-key: both.pem", "client"},
		"data":            {byName + ", certificate-authority-data: " + s.read(t, "ca.crt"), "client-certificate-data: " + s.read(t, "client.crt") + ", client-key-data: " + s.read(t, "client.key"), "client"},
		"token":           {ca, "token: open", "Bearer open"},
		"token file":      {ca, "tokenFile: token", "Bearer sesame"},
		"file over token": {ca, "tokenFile: token, token: open", "Bearer sesame"},
		"basic":           {ca, "username: u, password: 12345", basic},
		"not verified":    {"insecure-skip-tls-verify: true", "token: open2", "Bearer open2"},
		"data over files": {ca, "client-certificate: /none, client-key: /none, client-certificate-data: " + s.read(t, "client.crt") + ", client-key-data: " + s.read(t, "client.key"), "client"},
	} {
		s.seen.Clear()
		api := newSource(t, Config{Kubeconfig: s.config(t, c.cluster, c.user)}, nil)
		r, err := api.Refresh(t.Context())
		if err != nil || told(r) != all {
			t.Errorf("%s: %s, %v, %v %v", name, told(r), err, r.Err, r.Diagnostics)
		}
		if _, seen := s.seen.Load(c.is); !seen {
			t.Errorf("%s: the server did not see %q", name, c.is)
		}
		if warned := len(r.Diagnostics) > 0; warned != (name == "not verified") {
			t.Errorf("%s: warnings %v", name, r.Diagnostics)
		}
		if s.http.Load() != 2 {
			t.Errorf("%s: HTTP/%d", name, s.http.Load())
		}
	}
}

// What can't work is told at once, with what to do, and without what is secret.
func TestKubeconfigsRefused(t *testing.T) {
	s := newSecure(t, filled())
	ca := byName + ", certificate-authority: ca.crt"
	const token = "hunter2"
	for name, c := range map[string]struct{ cluster, user, says string }{
		"exec":            {ca, "token: hunter2, exec: {command: aws}", "runs none"},
		"auth-provider":   {ca, "auth-provider: {name: gcp}, token: hunter2", "auth-provider"},
		"not base64":      {byName + ", certificate-authority-data: hunter2!", "token: hunter2", "certificate-authority-data is not base64"},
		"no such CA":      {byName + ", certificate-authority: none.crt", "token: hunter2", "none.crt"},
		"CA that is none": {byName + ", certificate-authority: token", "token: hunter2", "certificate"},
		"no such key":     {ca, "client-certificate: client.crt, client-key: none.key", "none.key"},
		"YAML":            {ca, "token: *hunter2", "not the YAML of a kubeconfig"},
		"types":           {ca, "token: {a: hunter2}", "not the YAML of a kubeconfig line 13"},
		"other name":      {"tls-server-name: other, certificate-authority: ca.crt", "token: hunter2", "other"},
		"system's CAs":    {byName, "token: hunter2", "CA"},
	} {
		r, err := newSource(t, Config{Kubeconfig: s.config(t, c.cluster, c.user)}, nil).Refresh(t.Context())
		must(t, err)
		if r.Err == nil || !strings.Contains(r.Err.Error(), c.says) || !r.Unknown {
			t.Errorf("%s: %v %v", name, r.Err, r.Diagnostics)
			continue
		}
		if text := fmt.Sprintf("%+v", r); strings.Contains(text, token) {
			t.Errorf("%s: a secret is told: %s", name, text)
		}
	}
	for name, text := range map[string]string{
		"empty": "", "no context": "contexts: []", "unknown context": "current-context: x",
		"no user":   "current-context: x\ncontexts: [{name: x, context: {cluster: c, user: u}}]\nclusters: [{name: c, cluster: {server: 'https://a'}}]",
		"no scheme": "current-context: x\ncontexts: [{name: x, context: {cluster: c}}]\nclusters: [{name: c, cluster: {server: 'a:6443'}}]",
		"a list":    "[]", "binary": "\x00\x01",
	} {
		if _, err := fromKubeconfig("k", []byte(text)); err == nil {
			t.Errorf("%s was taken", name)
		}
	}
}

// A kubeconfig that comes late is read, one that is replaced is followed, and one
// that breaks does no harm.
func TestKubeconfigComesLaterAndChanges(t *testing.T) {
	s := newSecure(t, filled())
	path := filepath.Join(s.dir, "kubeconfig")
	f := run(t, newSource(t, Config{Kubeconfig: path}, nil))
	r := f.has("err unknown")
	if !strings.Contains(r.Err.Error(), path) || strings.Count(r.Err.Error(), path) > 2 {
		t.Errorf("err: %v", r.Err)
	}
	s.write(t, "kubeconfig", []byte("current-context: ["))
	f.until("broken", func(r source.Report) bool { return r.Err != nil && strings.Contains(r.Err.Error(), "not the YAML") })
	s.config(t, byName+", certificate-authority: ca.crt", "token: first")
	f.has(all)
	s.config(t, byName+", certificate-authority: ca.crt", "token: second")
	if _, err := f.source.Refresh(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, seen := s.seen.Load("Bearer second"); !seen {
		t.Error("the new token is not used")
	}
	must(t, os.Remove(path))
	if r, err := f.source.Refresh(t.Context()); err != nil || told(r) != all {
		t.Errorf("without the kubeconfig: %s %v", told(r), err)
	}
}

// A client certificate that is rotated on disk is used for the next connection.
func TestRotatedCertificate(t *testing.T) {
	a := filled()
	s := newSecure(t, a)
	f := run(t, newSource(t, Config{Kubeconfig: s.config(t, byName+", certificate-authority: ca.crt", "client-certificate: both.pem, client-key: both.pem")}, nil))
	f.has(all)
	s.client(t, "rotated")
	awaits(t, "the rotated certificate", func() bool {
		s.CloseClientConnections()
		_, seen := s.seen.Load("rotated")
		return seen
	})
	a.Put(policy("web", "two"))
	f.until("the change", func(r source.Report) bool { return strings.HasPrefix(told(r), "web:two") })
}

// Credentials are not taken to where a server redirects to.
func TestNoRedirects(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, q *http.Request) {
		t.Errorf("asked with %q", q.Header.Get("Authorization"))
	}))
	defer thief.Close()
	s := newSecure(t, http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) { http.Redirect(w, q, thief.URL, http.StatusFound) }))
	r, err := newSource(t, Config{Kubeconfig: s.config(t, byName+", certificate-authority: ca.crt", "token: secret")}, nil).Refresh(t.Context())
	if err != nil || told(r) != "offline unknown" {
		t.Errorf("%s %v", told(r), err)
	}
}

// Over HTTP/2 a connection that went dead without a word is noticed by pings, long
// before the watch's time is over.
func TestPingsNoticeADeadConnection(t *testing.T) {
	t.Setenv("HTTP2_READ_IDLE_TIMEOUT_SECONDS", "1")
	t.Setenv("HTTP2_PING_TIMEOUT_SECONDS", "1")
	a := filled()
	s := newSecure(t, a)
	proxy := newProxy(t, s.Listener.Addr().String())
	s.URL = "https://" + proxy.address
	api := newSource(t, Config{Kubeconfig: s.config(t, byName+", certificate-authority: ca.crt", "token: x")}, nil)
	api.times.watch2 = span{time.Hour, time.Hour}
	api.times.list = time.Second
	f := run(t, api)
	f.has(all)
	proxy.frozen.Store(true)
	f.has(all + " offline")
	a.Put(policy("web", "two"))
	proxy.frozen.Store(false)
	f.has("web:two shop=a web-1@10.1.0.1")
}

// proxy passes bytes on, or swallows them.
type proxy struct {
	address string
	frozen  atomic.Bool
}

func newProxy(t *testing.T, to string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	p := &proxy{address: l.Addr().String()}
	pass := func(from, to net.Conn) {
		defer from.Close()
		defer to.Close()
		for r := bufio.NewReader(from); ; {
			b, err := r.ReadByte()
			if err != nil {
				return
			}
			all := append([]byte{b}, make([]byte, r.Buffered())...)
			_, _ = io.ReadFull(r, all[1:]) // they are there
			if p.frozen.Load() {
				continue
			}
			if _, err := to.Write(all); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			in, err := l.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			go pass(in, out)
			go pass(out, in)
		}
	}()
	return p
}

// SIGTERM of a server: GOAWAY, and the watch ends; then it is gone for a moment.
func TestServerRestart(t *testing.T) {
	a := stub.NewAPI()
	s := newSecure(t, a)
	a.Put(namespace("shop", "a"))
	a.Put(policy("web", "one"))
	a.Put(pod("web-1", "gw", "10.1.0.1"))
	f := run(t, newSource(t, Config{Kubeconfig: s.config(t, byName+", certificate-authority: ca.crt", "token: x")}, nil))
	f.has(all)
	lists := a.Requests("list pods")
	s.Config.SetKeepAlivesEnabled(false) // HTTP/2: GOAWAY on every connection
	a.EndWatches()
	a.Put(policy("web", "two"))
	f.has("web:two shop=a web-1@10.1.0.1")
	if n := a.Requests("list pods"); n != lists {
		t.Errorf("%d lists after GOAWAY, where watching on was enough", n-lists)
	}
	f.never("nothing is lost", lacks)
}
