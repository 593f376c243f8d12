package stub

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// API is a Kubernetes API server of three resources, in memory: networkpolicies,
// namespaces and pods. It lists in pages and watches as a real one does, with
// resource versions, bookmarks and a history that ends, and has the faults of real
// ones. It is safe for concurrent use.
type API struct {
	// Bookmarks is the time between the bookmarks of a watch; there is one before
	// its end too. Set it before the first request.
	Bookmarks time.Duration

	mu       sync.Mutex
	version  int
	oldest   int // what happened up to this version is forgotten
	objects  map[string]map[string]object
	history  []change
	pages    map[string][]object // what is left of lists, by continue token
	moved    chan struct{}       // closed and made anew when anything happens
	ended    chan struct{}       // likewise, when all watches and held requests end
	faults   map[string]Answer
	noWatch  *time.Duration
	silent   bool
	dropped  bool
	anyNode  bool
	requests map[string]int
	server   *http.Server
}

type object struct {
	version int
	node    string
	text    []byte
}

type change struct {
	resource, event, key string
	object
}

// Answer is what a server says instead of a list or a watch.
type Answer struct {
	Code   int
	Body   string
	Header http.Header
}

// NewAPI gives a server without objects.
func NewAPI() *API {
	return &API{
		Bookmarks: time.Minute, version: 1, objects: map[string]map[string]object{}, pages: map[string][]object{},
		moved: make(chan struct{}), ended: make(chan struct{}), faults: map[string]Answer{}, requests: map[string]int{},
	}
}

var kinds = map[string]string{"NetworkPolicy": "networkpolicies", "Namespace": "namespaces", "Pod": "pods"}

var paths = map[string]string{
	"/apis/networking.k8s.io/v1/networkpolicies": "networkpolicies", "/api/v1/namespaces": "namespaces", "/api/v1/pods": "pods",
}

// Put creates or changes an object, given as JSON with kind and metadata.name. It
// panics if that is not what it was given.
func (a *API) Put(text string) {
	var o map[string]any
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		panic(fmt.Sprintf("stub: not an object: %v: %s", err, text))
	}
	kind, _ := o["kind"].(string)
	meta, _ := o["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	resource := kinds[kind]
	if resource == "" || name == "" {
		panic("stub: an object of no kind that is served, or without a name: " + text)
	}
	namespace, _ := meta["namespace"].(string)
	if namespace == "" && kind != "Namespace" {
		namespace = "default"
		meta["namespace"] = namespace
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	meta["resourceVersion"] = strconv.Itoa(a.version)
	if meta["uid"] == nil {
		meta["uid"] = fmt.Sprintf("uid-%d", a.version)
	}
	spec, _ := o["spec"].(map[string]any)
	node, _ := spec["nodeName"].(string)
	now := object{version: a.version, node: node, text: marshal(o)}
	key, event := namespace+"/"+name, "ADDED"
	if _, there := a.objects[resource][key]; there {
		event = "MODIFIED"
	}
	if a.objects[resource] == nil {
		a.objects[resource] = map[string]object{}
	}
	a.objects[resource][key] = now
	a.happened(change{resource, event, key, now})
}

// Delete takes an object away, if it is there.
func (a *API) Delete(kind, namespace, name string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	resource, key := kinds[kind], namespace+"/"+name
	was, there := a.objects[resource][key]
	if !there {
		return
	}
	delete(a.objects[resource], key)
	a.version++
	var o map[string]any
	_ = json.Unmarshal(was.text, &o) // it was marshalled here
	o["metadata"].(map[string]any)["resourceVersion"] = strconv.Itoa(a.version)
	a.happened(change{resource, "DELETED", key, object{a.version, was.node, marshal(o)}})
}

func (a *API) happened(c change) {
	a.history = append(a.history, c)
	wake(&a.moved)
}

func wake(c *chan struct{}) {
	close(*c)
	*c = make(chan struct{})
}

func marshal(v any) []byte {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // it came from JSON
	}
	return text
}

// Status makes lists and watches of a resource answer something else, until it is
// called with Answer{}.
func (a *API) Status(resource string, answer Answer) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.faults[resource] = answer; answer.Code == 0 {
		delete(a.faults, resource)
	}
}

// NoWatch makes watches answer 502 "Unsupported Watch" after a delay, as
// edge-kubelet's cache does. Negative: they work again.
func (a *API) NoWatch(delay time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.noWatch = &delay; delay < 0 {
		a.noWatch = nil
	}
	wake(&a.ended)
}

// Silent makes watches open and tell nothing, for as long as the client stays.
func (a *API) Silent(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.silent = on
	wake(&a.ended)
}

// Drop makes every request wait for ever, those that are open too: their answers
// are torn when it ends.
func (a *API) Drop(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.dropped = on
	wake(&a.ended)
}

// IgnoreSelector makes lists and watches of pods have those of all nodes, whatever
// the field selector says.
func (a *API) IgnoreSelector(on bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.anyNode = on
}

// Expire forgets what happened up to now: watches from an older version and lists
// that were begun get 410.
func (a *API) Expire() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.version++
	a.oldest, a.history, a.pages = a.version, nil, map[string][]object{}
	wake(&a.moved)
}

// EndWatches ends all watches, cleanly.
func (a *API) EndWatches() {
	a.mu.Lock()
	defer a.mu.Unlock()
	wake(&a.ended)
}

// Requests says how many lists (pages) or watches of a resource were asked for:
// "list pods", "watch pods".
func (a *API) Requests(what string) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.requests[what]
}

// Serve serves connections of l until Close, and returns at once. After Close it
// may be called again.
func (a *API) Serve(l net.Listener) {
	server := &http.Server{Handler: a, ReadHeaderTimeout: time.Minute}
	a.mu.Lock()
	a.server = server
	a.mu.Unlock()
	go func() { _ = server.Serve(l) }() // ErrServerClosed
}

// Close makes the server unreachable: connections are refused, and those that are
// open are torn down.
func (a *API) Close() {
	a.mu.Lock()
	server := a.server
	a.server = nil
	a.mu.Unlock()
	if server != nil {
		_ = server.Close() // of what is closed anyway
	}
}

// ServeHTTP answers a list or a watch.
func (a *API) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	resource := paths[strings.TrimSuffix(q.URL.Path, "/")]
	query := q.URL.Query()
	watch := query.Get("watch") == "1" || query.Get("watch") == "true"
	verb := "list "
	if watch {
		verb = "watch "
	}
	a.mu.Lock()
	a.requests[verb+resource]++
	fault, faulty := a.faults[resource]
	noWatch, dropped, ended := a.noWatch, a.dropped, a.ended
	a.mu.Unlock()
	switch {
	case dropped:
		hold(q, ended)
	case faulty:
		for name, values := range fault.Header {
			w.Header()[name] = values
		}
		w.WriteHeader(fault.Code)
		_, _ = w.Write([]byte(fault.Body)) // the client may be gone
	case resource == "" || q.Method != http.MethodGet:
		refuse(w, http.StatusNotFound, "NotFound", "the server could not find the requested resource")
	case watch && noWatch != nil:
		select {
		case <-q.Context().Done():
		case <-ended:
		case <-time.After(*noWatch):
		}
		http.Error(w, "Unsupported Watch", http.StatusBadGateway)
	case watch:
		a.watch(w, q, resource)
	default:
		a.list(w, q, resource)
	}
}

// hold never answers.
func hold(q *http.Request, ended <-chan struct{}) {
	select {
	case <-q.Context().Done():
	case <-ended:
	}
	panic(http.ErrAbortHandler)
}

func refuse(w http.ResponseWriter, code int, reason, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_, _ = w.Write(status(code, reason, message)) // the client may be gone
}

func status(code int, reason, message string) []byte {
	return marshal(map[string]any{"kind": "Status", "apiVersion": "v1", "metadata": map[string]any{}, "status": "Failure",
		"message": message, "reason": reason, "code": code})
}

// list answers one page.
func (a *API) list(w http.ResponseWriter, q *http.Request, resource string) {
	query := q.URL.Query()
	limit, _ := strconv.Atoi(query.Get("limit")) // 0: no limit
	a.mu.Lock()
	var rest []object
	version := a.version
	if token := query.Get("continue"); token != "" {
		var known bool
		rest, known = a.pages[token]
		if !known {
			a.mu.Unlock()
			refuse(w, http.StatusGone, "Expired", "The provided continue parameter is too old")
			return
		}
		version, _ = strconv.Atoi(strings.Split(token, "-")[0])
	} else {
		for _, o := range a.objects[resource] {
			if a.selected(query.Get("fieldSelector"), o) {
				rest = append(rest, o)
			}
		}
		slices.SortFunc(rest, func(x, y object) int { return x.version - y.version })
	}
	meta := map[string]any{"resourceVersion": strconv.Itoa(version)}
	if limit > 0 && len(rest) > limit {
		token := fmt.Sprintf("%d-%s-%d", version, resource, len(rest))
		a.pages[token] = rest[limit:]
		rest = rest[:limit]
		meta["continue"] = token
	}
	a.mu.Unlock()
	items := make([]json.RawMessage, 0, len(rest))
	for _, o := range rest {
		items = append(items, o.text)
	}
	kind, group := kindOf(resource)
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(marshal(map[string]any{"kind": kind + "List", "apiVersion": group, "metadata": meta, "items": items})) // the client may be gone
}

func kindOf(resource string) (kind, group string) {
	switch resource {
	case "networkpolicies":
		return "NetworkPolicy", "networking.k8s.io/v1"
	case "pods":
		return "Pod", "v1"
	}
	return "Namespace", "v1"
}

func (a *API) selected(selector string, o object) bool {
	node, found := strings.CutPrefix(selector, "spec.nodeName=")
	return !found || a.anyNode || node == o.node
}

// watch tells what happens from a version on.
func (a *API) watch(w http.ResponseWriter, q *http.Request, resource string) {
	query := q.URL.Query()
	from, err := strconv.Atoi(query.Get("resourceVersion"))
	if err != nil {
		refuse(w, http.StatusInternalServerError, "", "resourceVersion: Invalid value")
		return
	}
	seconds, _ := strconv.Atoi(query.Get("timeoutSeconds"))
	if seconds <= 0 {
		seconds = 1800
	}
	end := time.After(time.Duration(seconds) * time.Second)
	bookmark := time.NewTicker(min(a.Bookmarks, max(time.Duration(seconds)*time.Second*3/4, time.Millisecond)))
	defer bookmark.Stop()
	bookmarks := query.Get("allowWatchBookmarks") == "true"
	tell := func(event string, object []byte) {
		_, _ = fmt.Fprintf(w, "{\"type\":%q,\"object\":%s}\n", event, object) // the client may be gone
	}
	a.mu.Lock()
	ended := a.ended
	a.mu.Unlock()
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	for {
		a.mu.Lock()
		moved, silent, dropped := a.moved, a.silent, a.dropped
		if dropped {
			ended = a.ended
		}
		expired := from < a.oldest
		var news []change
		for _, c := range a.history {
			if c.version > from && c.resource == resource && a.selected(query.Get("fieldSelector"), c.object) {
				news = append(news, c)
			}
		}
		now := a.version
		a.mu.Unlock()
		switch {
		case dropped:
			hold(q, ended)
		case silent:
			news, bookmarks = nil, false
		case expired:
			tell("ERROR", status(http.StatusGone, "Expired", fmt.Sprintf("too old resource version: %d (%d)", from, now)))
			return
		}
		for _, c := range news {
			tell(c.event, c.text)
		}
		from = max(from, now)
		_ = http.NewResponseController(w).Flush() // the client may be gone
		select {
		case <-q.Context().Done():
			return
		case <-ended:
			if !a.holds() {
				return
			}
		case <-end:
			if !silent {
				return
			}
		case <-moved:
		case <-bookmark.C:
			if bookmarks {
				tell("BOOKMARK", a.bookmark(resource, from))
			}
		}
	}
}

// holds says whether open watches are dropped rather than ended.
func (a *API) holds() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.dropped
}

// bookmark gives an empty object with a version, as API servers do: of a
// NetworkPolicy it looks like one that denies everything.
func (a *API) bookmark(resource string, version int) []byte {
	kind, group := kindOf(resource)
	o := map[string]any{"kind": kind, "apiVersion": group, "metadata": map[string]any{"resourceVersion": strconv.Itoa(version)}}
	if kind == "NetworkPolicy" {
		o["spec"] = map[string]any{"podSelector": map[string]any{}}
	}
	return marshal(o)
}
