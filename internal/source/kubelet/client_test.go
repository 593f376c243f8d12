package kubelet

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"edgepolicy.io/edgepolicyd/internal/source"
	"edgepolicy.io/edgepolicyd/tests/stub"
)

// authority is a CA.
type authority struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t testing.TB, name string) *authority {
	t.Helper()
	a := &authority{t: t}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, SerialNumber: big.NewInt(1),
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	a.cert, a.key, a.pem = template, nil, nil
	a.cert, a.key, a.pem, _ = a.sign(template)
	return a
}

// sign makes a certificate; a CA's own if there is none yet.
func (a *authority) sign(template *x509.Certificate) (*x509.Certificate, *ecdsa.PrivateKey, []byte, []byte) {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(a.t, err)
	by := a.key
	if by == nil {
		by = key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, by)
	must(a.t, err)
	cert, err := x509.ParseCertificate(der)
	must(a.t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	must(a.t, err)
	return cert, key, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret})
}

// issue makes a certificate for a name and its key, in PEM.
func (a *authority) issue(name string, until time.Time) (cert, key []byte) {
	_, _, cert, key = a.sign(&x509.Certificate{
		Subject: pkix.Name{CommonName: name}, DNSNames: []string{name}, SerialNumber: big.NewInt(time.Now().UnixNano()),
		NotBefore: until.Add(-2 * time.Hour), NotAfter: until,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	})
	return cert, key
}

// secured is a stub kubelet behind TLS at a port of this machine.
type secured struct {
	*stub.Kubelet
	url    *url.URL
	ca     *authority
	config *tls.Config
	dir    string
}

func secure(t *testing.T, until time.Time) *secured {
	t.Helper()
	k := &secured{Kubelet: stub.NewKubelet(), ca: newAuthority(t, "kubelet-ca"), dir: t.TempDir()}
	pair, err := tls.X509KeyPair(k.ca.issue("gw-node", until))
	must(t, err)
	clients := x509.NewCertPool()
	clients.AddCert(k.ca.cert)
	k.config = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: clients}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	k.ServeTLS(l, k.config)
	t.Cleanup(k.Close)
	k.url = &url.URL{Scheme: "https", Host: l.Addr().String()}
	k.write(t, "ca.crt", k.ca.pem)
	k.SetPods(stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}})
	return k
}

func (k *secured) write(t *testing.T, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(k.dir, name)
	must(t, os.WriteFile(path+".new", data, 0o600))
	must(t, os.Rename(path+".new", path))
	return path
}

// source gives a source for the kubelet that logs to log.
func (k *secured) source(t *testing.T, cfg Config, log *bytes.Buffer) *Source {
	t.Helper()
	if cfg.URL == nil {
		cfg.URL = k.url
	}
	s, err := New(cfg, nil, slog.New(slog.NewTextHandler(log, nil)))
	must(t, err)
	s.client.wait = time.Minute // on a busy machine
	t.Cleanup(func() { s.client.close() })
	return s
}

var later = time.Now().Add(time.Hour)

// Who the kubelet must be, and who we are.
func TestTLS(t *testing.T) {
	k := secure(t, later)
	k.RequireCertificate()
	cert, key := k.ca.issue("edgepolicyd", later)
	k.write(t, "client.crt", cert)
	k.write(t, "client.key", key)
	stranger := newAuthority(t, "other-ca")
	k.write(t, "other-ca.crt", stranger.pem)
	cert, key = stranger.issue("edgepolicyd", later)
	k.write(t, "stranger.crt", cert)
	k.write(t, "stranger.key", key)
	k.write(t, "empty", nil)
	for _, c := range []struct {
		what, ca, name, cert, key string
		want                      string // of the error
	}{
		{"all is right", "ca.crt", "gw-node", "client.crt", "client.key", ""},
		{"no server name", "ca.crt", "", "client.crt", "client.key", "set serverName"},
		{"another name", "ca.crt", "other", "client.crt", "client.key", "set serverName"},
		{"another CA", "other-ca.crt", "gw-node", "client.crt", "client.key", "set ca"},
		{"the system's CAs", "", "gw-node", "client.crt", "client.key", "set ca"},
		{"no client certificate", "ca.crt", "gw-node", "", "", "401"},
		{"a stranger's", "ca.crt", "gw-node", "stranger.crt", "stranger.key", "401"},
		{"another's key", "ca.crt", "gw-node", "client.crt", "stranger.key", "stranger.key"},
		{"no such file", "ca.crt", "gw-node", "none.crt", "client.key", "none.crt"},
		{"an empty CA file", "empty", "gw-node", "client.crt", "client.key", "no certificate in PEM"},
	} {
		path := func(name string) string {
			if name == "" {
				return ""
			}
			return filepath.Join(k.dir, name)
		}
		s := k.source(t, Config{CA: path(c.ca), ServerName: c.name, Certificate: path(c.cert), Key: path(c.key)}, &bytes.Buffer{})
		r := refresh(t, s)
		if c.want == "" && (r.Err != nil || names(r) != "default/a=10.0.0.1") {
			t.Errorf("%s: %s", c.what, describe(r))
		}
		if c.want != "" && (r.Err == nil || !strings.Contains(r.Err.Error(), c.want) || !r.OfflineSince.IsZero() || !r.Unknown) {
			t.Errorf("%s: %s, want %s", c.what, describe(r), c.want)
		}
	}
}

// A server that insists on a certificate in the handshake, which a kubelet does
// not. In TLS 1.3 its refusal can be lost in the reset that follows it, so that
// not every attempt tells.
func TestRefusedHandshake(t *testing.T) {
	k := secure(t, later)
	strict := k.config.Clone()
	strict.ClientAuth = tls.RequireAndVerifyClientCert
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	other := stub.NewKubelet()
	other.ServeTLS(l, strict)
	t.Cleanup(other.Close)
	s := k.source(t, Config{URL: &url.URL{Scheme: "https", Host: l.Addr().String()}, CA: filepath.Join(k.dir, "ca.crt"), ServerName: "gw-node", Interval: time.Millisecond}, &bytes.Buffer{})
	run(t, s).until("the refusal", func(r source.Report) bool {
		return r.Err != nil && strings.Contains(r.Err.Error(), "certificate and key") && r.OfflineSince.IsZero()
	})
}

// A certificate of yesterday, or a clock of 1970.
func TestExpiredServer(t *testing.T) {
	k := secure(t, time.Now().Add(-time.Minute))
	r := refresh(t, k.source(t, Config{CA: filepath.Join(k.dir, "ca.crt"), ServerName: "gw-node"}, &bytes.Buffer{}))
	if r.Err == nil || !strings.Contains(r.Err.Error(), "clock") {
		t.Errorf("%s", describe(r))
	}
}

// TLS where there is none, and none where there is.
func TestWrongScheme(t *testing.T) {
	k := secure(t, later)
	plain := *k.url
	plain.Scheme = "http"
	if r := refresh(t, k.source(t, Config{URL: &plain}, &bytes.Buffer{})); r.Err == nil || !strings.Contains(r.Err.Error(), "use https://") {
		t.Errorf("%s", describe(r))
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	open := stub.NewKubelet()
	open.Serve(l)
	t.Cleanup(open.Close)
	if r := refresh(t, k.source(t, Config{URL: &url.URL{Scheme: "https", Host: l.Addr().String()}}, &bytes.Buffer{})); r.Err == nil || !strings.Contains(r.Err.Error(), "use http://") {
		t.Errorf("%s", describe(r))
	}
}

// The token is replaced while the daemon runs, and is told to nobody.
func TestTokenIsReplaced(t *testing.T) {
	const first, second = "s3cret-first", "s3cret-second"
	k := secure(t, later)
	k.RequireToken(first)
	token := k.write(t, "token", []byte(first+"\n"))
	var log bytes.Buffer
	s := k.source(t, Config{CA: filepath.Join(k.dir, "ca.crt"), ServerName: "gw-node", TokenFile: token, Interval: 10 * time.Millisecond}, &log)
	f := run(t, s)
	good := func(r source.Report) bool { return names(r) == "default/a=10.0.0.1" && r.Err == nil }
	bad := func(want string) func(source.Report) bool {
		return func(r source.Report) bool {
			return names(r) == "default/a=10.0.0.1" && r.Err != nil && strings.Contains(r.Err.Error(), want)
		}
	}
	f.until("the pods", good)
	k.RequireToken(second)
	f.until("a refusal", bad("401"))
	k.write(t, "token", []byte(second))
	f.until("the pods again", good)
	k.write(t, "token", nil)
	f.until("an empty file", bad("is empty"))
	k.write(t, "token", []byte(first+"\n"+second))
	f.until("two tokens", bad("one token"))
	k.Fail(http.StatusForbidden, "no right for "+second)
	k.write(t, "token", []byte(second))
	f.until("another refusal", bad("403"))
	k.Fail(0, "")
	f.until("the pods at last", good)
	for _, r := range f.all() {
		if text := fmt.Sprintf("%+v %v", r, r.Err); strings.Contains(text, "s3cret") {
			t.Errorf("the token is in a report: %s", text)
		}
	}
	if strings.Contains(log.String(), "s3cret") {
		t.Errorf("the token is in the log: %s", log.String())
	}
}

// CA and client certificate are replaced while the daemon runs; between the two
// halves of a pair the connection goes on.
func TestCertificatesAreReplaced(t *testing.T) {
	k := secure(t, later)
	k.RequireCertificate()
	cert, key := k.ca.issue("edgepolicyd", later)
	cfg := Config{CA: filepath.Join(k.dir, "ca.crt"), ServerName: "gw-node", Certificate: k.write(t, "c.crt", cert), Key: k.write(t, "c.key", key), Interval: 10 * time.Millisecond}
	f := run(t, k.source(t, cfg, &bytes.Buffer{}))
	good := func(r source.Report) bool {
		return names(r) == "default/a=10.0.0.1" && r.Err == nil && len(r.Diagnostics) == 0
	}
	f.until("the pods", good)
	cert, key = k.ca.issue("edgepolicyd", later)
	k.write(t, "c.crt", cert)
	f.until("a warning", func(r source.Report) bool {
		return r.Err == nil && len(r.Diagnostics) == 1 && strings.Contains(r.Diagnostics[0].String(), "c.key")
	})
	k.write(t, "c.key", key)
	f.until("the new pair", good)

	stranger := newAuthority(t, "other-ca")
	k.write(t, "ca.crt", stranger.pem)
	f.until("another CA", func(r source.Report) bool { return r.Err != nil && strings.Contains(r.Err.Error(), "not of the CA") })
	k.write(t, "ca.crt", append(stranger.pem, k.ca.pem...))
	f.until("both CAs", good)
}

// A kubelet restarts at its port, over real connections: nothing is lost, and
// HTTP/2 is spoken.
func TestRestartOfAPort(t *testing.T) {
	k := secure(t, later)
	s := k.source(t, Config{CA: filepath.Join(k.dir, "ca.crt"), ServerName: "gw-node", Interval: 20 * time.Millisecond}, &bytes.Buffer{})
	b := stub.Pod{Name: "b", IPs: []string{"10.0.0.2"}}
	k.SetPods(stub.Pod{Name: "a", IPs: []string{"10.0.0.1"}}, b)
	f := run(t, s)
	both := func(r source.Report) bool { return names(r) == "default/a=10.0.0.1 default/b=10.0.0.2" }
	f.until("both", both)
	from := len(f.all())
	k.Close()
	f.until("offline", func(r source.Report) bool { return !r.OfflineSince.IsZero() && both(r) })
	k.Null()
	l, err := net.Listen("tcp", k.url.Host)
	must(t, err)
	k.ServeTLS(l, k.config)
	f.until("its being back", func(r source.Report) bool { return r.OfflineSince.IsZero() && both(r) })
	k.SetPods(b)
	polls := k.Polls()
	for k.Polls() < polls+5 {
		time.Sleep(time.Millisecond)
	}
	never(t, f.all()[from:], "a pod was lost", func(r source.Report) bool { return !both(r) })
}

// What a server sends is bounded.
func TestTooLarge(t *testing.T) {
	s, w := wired(t, Config{}, nil)
	w.Fail(http.StatusOK, `{"kind":"PodList","items":["`+strings.Repeat("x", maxBody)+`"]}`)
	if r := refresh(t, s); r.Err == nil || !strings.Contains(r.Err.Error(), "16 MiB") {
		t.Errorf("%s", describe(r))
	}
	w.Fail(http.StatusOK, `{"kind":"PodList","items":[`+strings.Repeat("{},", maxPods)+`{}]}`)
	if r := refresh(t, s); r.Err == nil || !strings.Contains(r.Err.Error(), "5000 pods") {
		t.Errorf("%s", describe(r))
	}
}
