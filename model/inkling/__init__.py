"""The Inkling backbone (spec/inkling.md): sizes, modules, released tensor names."""
