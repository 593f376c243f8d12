package manifest

import (
	"encoding"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"gopkg.in/yaml.v3"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// reader decodes YAML into Go values by their json tags, with the API server's
// strictness: field names are compared letter by letter (encoding/json would
// take any case), null means absent, and a value is never converted to another
// type. Everything wrong is logged, not only the first; what could be read is set.
type reader struct {
	*log
	lenient bool // unknown fields are skipped: for objects of which only a part is read
	visited int
}

// Unmarshal reads one YAML document into v, a pointer to a struct with json
// tags, as strictly as a NetworkPolicy is read: unknown and repeated keys are
// errors. Fields that the document leaves out keep their value. Fields may
// implement encoding.TextUnmarshaler. An empty document is fine.
func Unmarshal(file string, data []byte, v any) []Diagnostic {
	roots, bad := parse(file, data)
	switch {
	case bad != nil:
		return []Diagnostic{*bad}
	case len(roots) == 0:
		return nil
	case len(roots) > 1:
		return []Diagnostic{{File: file, Line: roots[1].Line, Column: roots[1].Column, Message: "a second document: only one is read here, remove the line ---"}}
	}
	l := &log{tree: tree{file: file, node: roots[0]}}
	(&reader{log: l}).read(roots[0], nil, reflect.ValueOf(v).Elem())
	return l.found
}

var (
	intOrString     = reflect.TypeFor[intstr.IntOrString]()
	textUnmarshaler = reflect.TypeFor[encoding.TextUnmarshaler]()
)

// read sets v from a node. The depth is bounded by v's type.
func (r *reader) read(n *yaml.Node, p *field.Path, v reflect.Value) {
	n = deref(n)
	if r.visited++; r.visited == maxVisited {
		r.fail(p, "", fmt.Sprintf("more than %d values in one object (aliases count each time); split it", maxVisited))
	}
	if r.visited >= maxVisited || isNull(n) {
		return
	}
	if strings.HasPrefix(n.Tag, "!") && !strings.HasPrefix(n.Tag, "!!") {
		r.fail(p, n.Tag, "YAML tags of one's own are not read here: remove it")
		return
	}
	if reflect.PointerTo(v.Type()).Implements(textUnmarshaler) {
		r.scalarText(n, p, v)
		return
	}
	switch v.Kind() {
	case reflect.Pointer:
		to, before := reflect.New(v.Type().Elem()), r.count[Error]
		r.read(n, p, to.Elem())
		scalar := to.Elem().Kind() != reflect.Struct || to.Type().Elem() == intOrString
		if !scalar || r.count[Error] == before { // a scalar told to be wrong is not judged again
			v.Set(to)
		}
	case reflect.Struct:
		if v.Type() == intOrString {
			r.intOrString(n, p, v.Addr().Interface().(*intstr.IntOrString))
			return
		}
		r.fields(n, p, v)
	case reflect.Slice:
		r.list(n, p, v)
	case reflect.Map:
		r.stringMap(n, p, v)
	case reflect.String:
		v.SetString(r.text(n, p))
	case reflect.Bool:
		r.boolean(n, p, v)
	case reflect.Int32:
		i, _ := r.integer(n, p)
		v.SetInt(int64(i))
	case reflect.Interface: // known, but not read
	default:
		panic("manifest: no YAML for " + v.Type().String())
	}
}

// pairs gives a mapping's keys and values, and logs the repeated keys.
func (r *reader) pairs(n *yaml.Node, p *field.Path, visit func(key, value *yaml.Node)) {
	if n.Kind != yaml.MappingNode {
		r.fail(p, brief(n), "must be a mapping (key: value)"+colonHint(n))
		return
	}
	lines := make(map[string]int, len(n.Content)/2)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := deref(n.Content[i]), n.Content[i+1]
		if key.Kind != yaml.ScalarNode {
			r.failAt(key, p, brief(key), "a key must be a plain text")
			continue
		}
		if key.ShortTag() == "!!merge" {
			r.failAt(key, p, "<<", "merge keys are not read here: write the fields out")
			continue
		}
		if line, twice := lines[key.Value]; twice {
			r.failAt(key, p, key.Value, fmt.Sprintf("the key stands twice in one mapping, first in line %d: remove one", line))
			continue
		}
		lines[key.Value] = key.Line
		visit(key, value)
	}
}

// fields sets a struct's fields; those of an embedded struct are its own.
func (r *reader) fields(n *yaml.Node, p *field.Path, v reflect.Value) {
	known := map[string]int{}
	for i := range v.NumField() {
		name, _, _ := strings.Cut(v.Type().Field(i).Tag.Get("json"), ",")
		known[name] = i
	}
	r.pairs(n, p, func(key, value *yaml.Node) {
		if i, ok := known[key.Value]; ok {
			r.read(value, p.Child(key.Value), v.Field(i))
			return
		}
		if r.lenient {
			return
		}
		var names []string
		for name := range known {
			names = append(names, name)
		}
		slices.Sort(names)
		message := "unknown field: known here are " + strings.Join(names, ", ")
		if near := nearest(key.Value, names); near != "" {
			message = fmt.Sprintf("unknown field: did you mean %s?", near)
		}
		r.failAt(key, p.Child(key.Value), "", message)
	})
}

func (r *reader) list(n *yaml.Node, p *field.Path, v reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		r.fail(p, brief(n), "must be a list: each entry on a line of its own, starting with -"+colonHint(n))
		return
	}
	v.Set(reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content)))
	for i, entry := range n.Content {
		if isNull(deref(entry)) {
			// The API server would take it for {}, which can mean everything.
			r.fail(p.Index(i), "", "an entry without content: remove it, or write {} if everything is meant")
			continue
		}
		r.read(entry, p.Index(i), v.Index(i))
	}
}

func (r *reader) stringMap(n *yaml.Node, p *field.Path, v reflect.Value) {
	v.Set(reflect.MakeMap(v.Type()))
	r.pairs(n, p, func(key, value *yaml.Node) {
		r.visited++
		at := p.Key(key.Value)
		k := r.text(key, at)
		v.SetMapIndex(reflect.ValueOf(k), reflect.ValueOf(r.text(deref(value), at)))
	})
}

// booleans are YAML 1.1's, which kubectl reads as true or false where YAML 1.2
// has plain strings.
var booleans = map[string]bool{
	"y": true, "Y": true, "yes": true, "Yes": true, "YES": true, "on": true, "On": true, "ON": true,
	"n": false, "N": false, "no": false, "No": false, "NO": false, "off": false, "Off": false, "OFF": false,
}

var typeNames = map[string]string{"!!int": "a number", "!!float": "a number", "!!bool": "a boolean", "!!null": "nothing"}

// text gives a string; a number or boolean is an error, as the API server would
// refuse it.
func (r *reader) text(n *yaml.Node, p *field.Path) string {
	if n.Kind != yaml.ScalarNode {
		r.fail(p, brief(n), "must be a text"+colonHint(n))
		return ""
	}
	switch tag := n.ShortTag(); tag {
	case "!!str", "!!timestamp":
		if _, word := booleans[n.Value]; word && n.Style == 0 {
			r.warn(p, n.Value, fmt.Sprintf("taken as text, but YAML 1.1 readers such as kubectl take it for a boolean: write it in quotes, %q", n.Value))
		}
		return n.Value
	default:
		name := typeNames[tag]
		if name == "" {
			name = tag
		}
		r.fail(p, n.Value, fmt.Sprintf("is %s in YAML and must be a text: write it in quotes, %q", name, n.Value))
		return n.Value
	}
}

func (r *reader) boolean(n *yaml.Node, p *field.Path, v reflect.Value) {
	if word, ok := booleans[n.Value]; ok && n.Kind == yaml.ScalarNode && n.Style == 0 {
		v.SetBool(word)
		r.warn(p, n.Value, fmt.Sprintf("read as %t, as YAML 1.1 does: write %t", word, word))
		return
	}
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
		r.fail(p, brief(n), "must be true or false, without quotes")
		return
	}
	v.SetBool(strings.EqualFold(n.Value, "true"))
}

// integer reads a plain decimal number of 32 bits, the only spelling of which
// JSON, YAML 1.1 and YAML 1.2 agree.
func (r *reader) integer(n *yaml.Node, p *field.Path) (int32, bool) {
	i, err := strconv.ParseInt(n.Value, 10, 32)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil || strconv.FormatInt(i, 10) != n.Value {
		r.fail(p, brief(n), "must be a whole decimal number, without quotes and leading zeros")
		return 0, false
	}
	return int32(i), true
}

func (r *reader) intOrString(n *yaml.Node, p *field.Path, v *intstr.IntOrString) {
	if n.Kind == yaml.ScalarNode && n.ShortTag() == "!!str" {
		*v = intstr.FromString(r.text(n, p))
		return
	}
	if i, ok := r.integer(n, p); ok {
		*v = intstr.FromInt32(i)
	}
}

func (r *reader) scalarText(n *yaml.Node, p *field.Path, v reflect.Value) {
	if n.Kind != yaml.ScalarNode {
		r.fail(p, brief(n), "must be a single value")
		return
	}
	if err := v.Addr().Interface().(encoding.TextUnmarshaler).UnmarshalText([]byte(n.Value)); err != nil {
		r.fail(p, n.Value, err.Error())
	}
}

// brief says in a message what a node is.
func brief(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	}
	return n.Value
}

// colonHint recognises "- to" with its list on the next line: YAML joins both
// to one text, "to - ipBlock".
func colonHint(n *yaml.Node) string {
	word, rest, found := strings.Cut(n.Value, " ")
	if n.Kind != yaml.ScalarNode || n.Style != 0 || word == "" || (found && !strings.HasPrefix(rest, "-")) {
		return ""
	}
	return fmt.Sprintf("; is a colon missing, %q?", word+":")
}
