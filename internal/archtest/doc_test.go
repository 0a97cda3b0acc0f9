package archtest

import (
	"go/ast"
	"go/token"
	"path"
	"strings"
	"testing"
)

// Every package opens with one sentence that says what it is for.
func TestPackagesSayWhatTheyAreFor(t *testing.T) {
	for _, p := range packages(t) {
		var docs []string
		name := ""
		for _, f := range p.files {
			name = f.Name.Name
			if f.Doc != nil {
				docs = append(docs, f.Doc.Text())
			}
		}
		begin := "Package " + name + " "
		if name == "main" {
			begin = "Command " + path.Base(p.dir) + " "
		}
		switch {
		case len(docs) == 0:
			t.Errorf("%s has no package comment", p.dir)
		case len(docs) > 1:
			t.Errorf("%s has %d package comments; keep one", p.dir, len(docs))
		case !strings.HasPrefix(docs[0], begin):
			t.Errorf("the comment of %s does not begin with %q", p.dir, begin)
		case !strings.Contains(docs[0], ".\n") && !strings.Contains(docs[0], ". "):
			t.Errorf("the comment of %s has no whole sentence", p.dir)
		}
	}
}

// Everything exported says what it is. Constants and variables may share the
// comment of their group, or stand behind their value.
func TestExportedThingsAreDocumented(t *testing.T) {
	for _, p := range packages(t) {
		for _, f := range p.files {
			if f.Name.Name == "main" || ast.IsGenerated(f) {
				continue
			}
			for _, d := range f.Decls {
				for _, name := range undocumented(d) {
					t.Errorf("%s: %s has no comment", p.fset.Position(d.Pos()), name)
				}
			}
		}
	}
}

func undocumented(d ast.Decl) []string {
	switch d := d.(type) {
	case *ast.FuncDecl:
		if d.Name.IsExported() && d.Doc == nil && receiverExported(d) {
			return []string{d.Name.Name}
		}
	case *ast.GenDecl:
		if d.Tok == token.IMPORT {
			return nil
		}
		return undocumentedSpecs(d)
	}
	return nil
}

func undocumentedSpecs(d *ast.GenDecl) []string {
	var out []string
	for _, s := range d.Specs {
		switch s := s.(type) {
		case *ast.TypeSpec:
			if s.Name.IsExported() && s.Doc == nil && d.Doc == nil {
				out = append(out, s.Name.Name)
			}
		case *ast.ValueSpec:
			for _, n := range s.Names {
				if n.IsExported() && s.Doc == nil && s.Comment == nil && d.Doc == nil {
					out = append(out, n.Name)
				}
			}
		}
	}
	return out
}

func receiverExported(d *ast.FuncDecl) bool {
	if d.Recv == nil || len(d.Recv.List) == 0 {
		return true
	}
	t := d.Recv.List[0].Type
	for {
		switch x := t.(type) {
		case *ast.StarExpr:
			t = x.X
		case *ast.IndexExpr:
			t = x.X
		case *ast.Ident:
			return x.IsExported()
		default:
			return true
		}
	}
}
