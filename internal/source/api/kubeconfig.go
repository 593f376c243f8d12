package api

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"time"

	"go.yaml.in/yaml/v2"
	"k8s.io/client-go/transport"

	"edgepolicy.io/edgepolicyd/internal/manifest"
)

const (
	connectLimit  = 2500 * time.Millisecond // TCP; less than the wait for the next attempt
	maxKubeconfig = 1 << 20                 // bytes
	userAgent     = "edgepolicyd"
)

// connection gives the client, and makes it anew when the kubeconfig changed.
type connection struct {
	kubeconfig string // path, or empty
	server     string

	mu     sync.Mutex
	text   []byte // of the kubeconfig that client was made of
	client *client
}

// get gives the client. A kubeconfig that can't be used any more is of no
// consequence for a client that was made of it.
func (c *connection) get() (*client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.kubeconfig == "" {
		if c.client == nil {
			made, err := newClient("server", c.server, &transport.Config{})
			if err != nil {
				return nil, err
			}
			c.client = made
		}
		return c.client, nil
	}
	text, err := readLimited(c.kubeconfig)
	if err == nil && (c.client == nil || !bytes.Equal(text, c.text)) {
		var made *client
		if made, err = fromKubeconfig(c.kubeconfig, text); err == nil {
			c.client, c.text = made, text
		}
	}
	if c.client != nil {
		return c.client, nil
	}
	return nil, err
}

// about names the server, without anything secret, and gives what is to be said of
// the way there.
func (c *connection) about() (where string, warnings []manifest.Diagnostic) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client == nil {
		return c.kubeconfig + c.server, nil
	}
	return c.client.base.Scheme + "://" + c.client.base.Host, slices.Clone(c.client.warnings)
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, &configError{fmt.Sprintf("kubeconfig: %v: it is read again every few seconds", err)}
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxKubeconfig+1))
	if err != nil {
		return nil, &configError{fmt.Sprintf("kubeconfig: %v", err)}
	}
	if len(text) > maxKubeconfig {
		return nil, &configError{fmt.Sprintf("kubeconfig %s: more than 1 MiB: is it the right file?", path)}
	}
	return text, nil
}

// kubeconfig is the part of a kubeconfig (client.config v1) that is read.
type kubeconfig struct {
	Current  string `yaml:"current-context"`
	Contexts []struct {
		Name    string
		Context struct{ Cluster, User string }
	}
	Clusters []struct {
		Name    string
		Cluster cluster
	}
	Users []struct {
		Name string
		User user
	}
}

type cluster struct {
	Server     string
	ServerName string `yaml:"tls-server-name"`
	Insecure   bool   `yaml:"insecure-skip-tls-verify"`
	CA         string `yaml:"certificate-authority"`
	CAData     string `yaml:"certificate-authority-data"`
	Proxy      string `yaml:"proxy-url"`
}

type user struct {
	Cert      string `yaml:"client-certificate"`
	CertData  string `yaml:"client-certificate-data"`
	Key       string `yaml:"client-key"`
	KeyData   string `yaml:"client-key-data"`
	Token     string
	TokenFile string `yaml:"tokenFile"`
	Username  string
	Password  string
	As        string              `yaml:"as"`
	AsUID     string              `yaml:"as-uid"`
	AsGroups  []string            `yaml:"as-groups"`
	AsExtra   map[string][]string `yaml:"as-user-extra"`
	Exec      any
	Provider  any `yaml:"auth-provider"`
}

// line is what may be repeated of an error of the YAML library: the rest quotes
// the file, and so secrets.
var line = regexp.MustCompile(`line \d+`)

// fromKubeconfig makes a client of the current context.
func fromKubeconfig(path string, text []byte) (*client, error) {
	fail := func(format string, args ...any) (*client, error) {
		return nil, &configError{"kubeconfig " + path + ": " + fmt.Sprintf(format, args...)}
	}
	var k kubeconfig
	if err := yaml.Unmarshal(text, &k); err != nil {
		return fail("not the YAML of a kubeconfig %s", line.FindString(err.Error()))
	}
	if k.Current == "" {
		return fail("no current-context: choose one with kubectl config use-context")
	}
	var at *cluster
	var as *user
	for _, c := range k.Contexts {
		if c.Name != k.Current {
			continue
		}
		for i := range k.Clusters {
			if k.Clusters[i].Name == c.Context.Cluster {
				at = &k.Clusters[i].Cluster
			}
		}
		if as = (&user{}); c.Context.User != "" {
			as = nil
		}
		for i := range k.Users {
			if c.Context.User != "" && k.Users[i].Name == c.Context.User {
				as = &k.Users[i].User
			}
		}
	}
	switch {
	case at == nil:
		return fail("the current context, or its cluster, is not in the file")
	case as == nil:
		return fail("the user of the current context is not in the file")
	case as.Exec != nil:
		return fail("the user's credentials come from a program (exec), and this daemon runs none: use a certificate, a token or a tokenFile")
	case as.Provider != nil:
		return fail("the user's credentials come from an auth-provider, which is not supported: use a certificate, a token or a tokenFile")
	}
	config, err := transportOf(filepath.Dir(path), at, as)
	if err != nil {
		return fail("%v", err)
	}
	made, err := newClient("kubeconfig "+path, at.Server, config)
	if err != nil {
		return nil, err
	}
	if at.Insecure {
		made.warn(path, "insecure-skip-tls-verify: whoever is in between can dictate policies: give the server's certificate-authority")
	}
	if host, err := netip.ParseAddr(made.base.Hostname()); made.base.Scheme == "http" && (config.HasTokenAuth() || config.HasBasicAuth()) &&
		made.base.Hostname() != "localhost" && (err != nil || !host.IsLoopback()) {
		made.warn(path, "credentials are sent over plain HTTP: use https")
	}
	return made, nil
}

func (c *client) warn(path, message string) {
	c.warnings = append(c.warnings, manifest.Diagnostic{Severity: manifest.Warning, File: path, Message: message})
}

// transportOf says how the server is reached. Files are named relative to the
// kubeconfig's directory; what they hold is read again when they change.
func transportOf(dir string, at *cluster, as *user) (*transport.Config, error) {
	file := func(name string) string {
		if name == "" || filepath.IsAbs(name) {
			return name
		}
		return filepath.Join(dir, name)
	}
	c := &transport.Config{
		BearerToken: as.Token, BearerTokenFile: file(as.TokenFile), Username: as.Username, Password: as.Password,
		Impersonate: transport.ImpersonationConfig{UserName: as.As, UID: as.AsUID, Groups: as.AsGroups, Extra: as.AsExtra},
		TLS: transport.TLSConfig{
			Insecure: at.Insecure, ServerName: at.ServerName, CAFile: file(at.CA), CertFile: file(as.Cert), KeyFile: file(as.Key),
		},
	}
	for _, d := range []struct {
		name, text string
		to         *[]byte
		file       *string
	}{
		{"certificate-authority-data", at.CAData, &c.TLS.CAData, &c.TLS.CAFile},
		{"client-certificate-data", as.CertData, &c.TLS.CertData, &c.TLS.CertFile},
		{"client-key-data", as.KeyData, &c.TLS.KeyData, &c.TLS.KeyFile},
	} {
		if d.text == "" {
			continue
		}
		data, err := base64.StdEncoding.DecodeString(d.text)
		if err != nil {
			return nil, fmt.Errorf("%s is not base64", d.name)
		}
		*d.to, *d.file = data, ""
	}
	if at.Insecure {
		c.TLS.CAFile, c.TLS.CAData = "", nil // client-go takes only one of the two
	}
	if at.Proxy != "" {
		proxy, err := url.Parse(at.Proxy)
		if err != nil {
			return nil, fmt.Errorf("proxy-url is no URL")
		}
		c.Proxy = http.ProxyURL(proxy)
	}
	return c, nil
}

// newClient makes a client. what says where the server's URL is written.
func newClient(what, server string, c *transport.Config) (*client, error) {
	base, err := url.Parse(server)
	if err != nil || base.Scheme != "http" && base.Scheme != "https" || base.Host == "" {
		return nil, &configError{what + ": the server is no URL such as https://10.0.0.1:6443 or http://127.0.0.1:10355"}
	}
	if base.User != nil || base.RawQuery != "" {
		return nil, &configError{what + ": the server's URL may have no credentials and no query: credentials belong to the kubeconfig's user"}
	}
	c.UserAgent = userAgent
	c.DialHolder = &transport.DialHolder{Dial: (&net.Dialer{Timeout: connectLimit, KeepAlive: 15 * time.Second}).DialContext}
	t, err := transport.New(c)
	if err != nil {
		return nil, &configError{what + ": " + err.Error()}
	}
	return &client{base: base, http: &http.Client{
		Transport: t,
		// Credentials are added to each request: one that was sent elsewhere would
		// take them there.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}
