// Package manifest turns Kubernetes YAML and JSON into inventory values, and
// says what is wrong with it by file, line and column.
//
// What always holds: it touches neither disk nor network. An object is valid as
// a whole or not at all (S9). What is not understood is an error, never skipped
// silently (S1). Decode of an object's canonical JSON gives an equal object.
package manifest

import (
	"cmp"
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"

	"gopkg.in/yaml.v3"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"

	"edgepolicy.io/edgepolicyd/internal/inventory"
)

// Document is one object of a file, or an entry of a List in it.
type Document struct {
	// Kind and Key say which object it is, also of an invalid one, so that its
	// last valid version can stay in force (S9). Key.Name is empty, and Kind may
	// be, where the document does not tell: then it may be any object.
	Kind   inventory.Kind
	Key    inventory.Key
	Origin inventory.Origin
	Valid  bool
	// One of these is set in a valid document, as Kind says.
	Pod       *inventory.Pod
	Namespace *inventory.Namespace
	Policy    *inventory.Policy
}

// File is what Decode made of one file. It keeps the parsed text for Lint: hold
// on to the objects, not to the File.
type File struct {
	// Parsed is false when the YAML itself could not be read: nothing of the
	// file is known, and its last valid content stays (S9).
	Parsed      bool
	Documents   []Document
	Diagnostics []Diagnostic
	trees       []tree // by Documents
}

// Decode reads all objects of a file: NetworkPolicy, Pod, Namespace and Lists of
// them. Other kinds are named in a warning and skipped (S1). source and file
// become the objects' Origin.
func Decode(source, file string, data []byte) File {
	roots, bad := parse(file, data)
	if bad != nil {
		return File{Diagnostics: []Diagnostic{*bad}}
	}
	d := decoder{source: source, File: File{Parsed: true}}
	for _, root := range roots {
		d.object(tree{file: file, node: deref(root)}, "", "")
	}
	return d.File
}

type decoder struct {
	source string
	File
}

// apiVersions holds the kinds that are read, and where each belongs.
var apiVersions = map[string]string{
	"NetworkPolicy": "networking.k8s.io/v1", "NetworkPolicyList": "networking.k8s.io/v1",
	"Pod": "v1", "PodList": "v1", "Namespace": "v1", "NamespaceList": "v1", "List": "v1",
}

// head is what every object is known by.
type (
	head struct {
		APIVersion string `json:"apiVersion"`
		Kind       string `json:"kind"`
		Metadata   meta   `json:"metadata"`
	}
	meta struct {
		Name      string            `json:"name"`
		Namespace string            `json:"namespace,omitempty"`
		Labels    map[string]string `json:"labels,omitempty"`
	}
)

// object reads one object. kind and apiVersion stand in for missing ones, as in
// the items of a PodList.
func (d *decoder) object(t tree, kind, apiVersion string) {
	l := &log{tree: t}
	var h head
	// What is wrong with these fields is told below, when the kind is known.
	quiet := &reader{log: &log{tree: t}, lenient: true}
	if t.node.Kind == yaml.MappingNode {
		quiet.read(t.node, nil, reflect.ValueOf(&h).Elem())
	} else {
		l.fail(nil, brief(t.node), "must be a Kubernetes object: a mapping with apiVersion, kind and metadata"+colonHint(t.node))
	}
	if h.Kind == "" && h.APIVersion == "" {
		h.Kind, h.APIVersion = kind, apiVersion
	}
	doc := Document{
		Kind:   inventory.Kind(h.Kind),
		Key:    inventory.Key{Namespace: h.Metadata.Namespace, Name: h.Metadata.Name},
		Origin: inventory.Origin{Source: d.source, File: t.file, Line: t.node.Line, Column: t.node.Column},
	}
	switch {
	case doc.Kind == inventory.KindNamespace:
		doc.Key.Namespace = ""
	case doc.Key.Namespace == "":
		doc.Key.Namespace = "default"
	}
	l.object = strings.TrimSpace(h.Kind + " " + doc.Key.String())
	if l.valid() && !l.typeMeta(h) {
		d.keep(doc, l) // an error, or a kind for others
		return
	}
	switch {
	case !l.valid():
	case doc.Kind == inventory.KindPolicy:
		doc.Policy = l.policyObject(doc.Key, doc.Origin)
	case doc.Kind == inventory.KindPod:
		doc.Pod = l.podObject(doc.Key, doc.Origin)
	case doc.Kind == inventory.KindNamespace:
		doc.Namespace = l.namespaceObject(doc.Key, doc.Origin)
	default:
		d.list(l, strings.TrimSuffix(h.Kind, "List"), h.APIVersion)
		if l.valid() {
			d.tell(l)
			return
		}
		doc.Key = inventory.Key{} // what it would have held is not known
	}
	d.keep(doc, l)
}

// typeMeta checks kind and apiVersion, and says whether to read on (S1).
func (l *log) typeMeta(h head) bool {
	root := (*field.Path)(nil)
	want, ours := apiVersions[h.Kind]
	switch {
	case h.Kind == "":
		l.fail(root.Child("kind"), "", "required as a text: say what this is, such as kind: NetworkPolicy")
	case !ours && h.APIVersion != "":
		for kind := range maps.Keys(apiVersions) {
			if strings.EqualFold(kind, h.Kind) || len(kind) > 8 && distance(kind, h.Kind) <= 2 {
				l.fail(root.Child("kind"), h.Kind, "must be spelt "+kind)
				return false
			}
		}
		l.warn(root.Child("kind"), h.Kind, "skipped: only NetworkPolicy, Pod, Namespace and Lists of them are read")
	case h.APIVersion == "":
		if !ours {
			want = "its API group and version"
		}
		l.fail(root.Child("apiVersion"), "", "required: write apiVersion: "+want)
	case h.APIVersion != want:
		l.fail(root.Child("apiVersion"), h.APIVersion, fmt.Sprintf("a %s is read only as %s", h.Kind, want))
	default:
		return true
	}
	return false
}

// list reads the items of a List.
func (d *decoder) list(l *log, kind, apiVersion string) {
	var list struct {
		APIVersion any `json:"apiVersion"`
		Kind       any `json:"kind"`
		Metadata   any `json:"metadata"`
		Items      any `json:"items"`
	}
	(&reader{log: l}).read(l.node, nil, reflect.ValueOf(&list).Elem())
	items, path := child(l.node, "items"), field.NewPath("items")
	switch {
	case l.prefix != "":
		l.fail(nil, "", "a List in a List is not read: make it a document of its own")
	case items == nil || isNull(deref(items)):
	case deref(items).Kind != yaml.SequenceNode:
		l.fail(path, brief(items), "must be a list of objects"+colonHint(items))
	case !l.valid():
	case len(d.Documents)+len(deref(items).Content) > maxDocuments:
		l.fail(path, "", fmt.Sprintf("more than %d objects in one file; split it", maxDocuments))
	default:
		if kind == "" { // items of a plain List say themselves what they are
			apiVersion = ""
		}
		for i, item := range deref(items).Content {
			d.object(tree{file: l.file, node: deref(item), prefix: path.Index(i).String() + "."}, kind, apiVersion)
		}
	}
}

// maxTold is how many diagnostics are told of one file; of each object at least
// the first error is.
const maxTold = 1000

func (d *decoder) tell(l *log) {
	slices.SortStableFunc(l.found, func(a, b Diagnostic) int {
		return cmp.Or(cmp.Compare(a.Line, b.Line), cmp.Compare(a.Column, b.Column))
	})
	rejected := false
	for _, found := range l.found {
		if first := found.Severity == Error && !rejected; first || len(d.Diagnostics) < maxTold {
			d.Diagnostics = append(d.Diagnostics, found)
			rejected = rejected || first
		}
	}
}

// keep adds a document, unless it is a valid one of a kind for others.
func (d *decoder) keep(doc Document, l *log) {
	d.tell(l)
	doc.Valid = doc.Policy != nil || doc.Pod != nil || doc.Namespace != nil
	if doc.Valid || !l.valid() {
		d.Documents = append(d.Documents, doc)
		d.trees = append(d.trees, l.tree)
	}
}

// metadata validates what is read of metadata. name is the rule for names of
// the kind.
func (l *log) metadata(m meta, name func(string) []string) {
	p := field.NewPath("metadata")
	if m.Name == "" {
		l.fail(p.Child("name"), "", "required: give the object a name")
	} else {
		l.all(p.Child("name"), m.Name, name(m.Name))
	}
	if m.Namespace != "" {
		l.all(p.Child("namespace"), m.Namespace, validation.IsDNS1123Label(m.Namespace))
	}
	l.labels(m.Labels, p.Child("labels"))
}

// labels validates labels or matchLabels, in a fixed order.
func (l *log) labels(set map[string]string, p *field.Path) {
	for _, k := range slices.Sorted(maps.Keys(set)) {
		l.all(p.Key(k), k, validation.IsQualifiedName(k))
		l.all(p.Key(k), set[k], validation.IsValidLabelValue(set[k]))
	}
}

// all fails with each message of a Kubernetes validation function, without the
// regular expressions that most end in.
func (l *log) all(p *field.Path, value string, messages []string) {
	for _, m := range messages {
		l.fail(p, value, readable(m))
	}
}

func readable(message string) string {
	if text, _, cut := strings.Cut(message, ", regex used for validation"); cut {
		message = text + ")"
	}
	return strings.ReplaceAll(message, ",  or ", " or ")
}

// canonical is the JSON of an object: fields in a fixed order, maps by key.
func canonical(object any) []byte {
	data, err := json.Marshal(object)
	if err != nil {
		panic("manifest: " + err.Error()) // plain strings and numbers only
	}
	return data
}
