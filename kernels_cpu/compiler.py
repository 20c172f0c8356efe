"""Machine code of kernels: numba's front end, LLVM's passes, and one relocatable object for a whole set.

The object needs nothing of numba: no exceptions, no memory, no Python. link.py refuses one that does.
"""

from __future__ import annotations

from collections.abc import Mapping

import llvmlite.binding as llvm
from llvmlite import ir
from numba.core import cgutils, compiler, types
from numba.core.compiler_lock import global_compiler_lock
from numba.core.cpu import FastMathOptions
from numba.core.registry import cpu_target
from numba.core.targetconfig import ConfigStack

from kernels_cpu.native import Source


def compiled(sources: Mapping[str, Source]) -> bytes:
    """An ELF object that defines a C function `void NAME(int64 *arguments)` for each source, for this CPU and position-independent."""
    # The kernels' inline assembly.
    llvm.initialize_native_asmparser()
    module = None
    for name, source in sources.items():
        optimized = _module(name, source)
        if module is None:
            module = optimized
        else:
            module.link_in(optimized)
    assert module is not None
    triple, cpu, cpu_features = cpu_target.target_context.codegen().magic_tuple()
    machine = llvm.Target.from_triple(triple).create_target_machine(cpu, cpu_features, 3, "pic", "small")
    return bytes(machine.emit_object(module))


@global_compiler_lock  # type: ignore[untyped-decorator]
def _module(name: str, source: Source) -> llvm.ModuleRef:
    typing, context = cpu_target.typing_context, cpu_target.target_context
    flags = compiler.Flags()
    flags.error_model = "numpy"
    flags.nrt = True  # carray wants it; link.py finds out who uses it
    flags.fastmath = FastMathOptions(set(source.fastmath))
    flags.no_compile = flags.no_cpython_wrapper = flags.no_cfunc_wrapper = True
    arguments = (types.voidptr,)
    result = compiler.compile_extra(typing, context, source.run, arguments, types.void, flags, {})
    library = result.library
    module = library.create_ir_module(name)
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t]), name)
    builder = ir.IRBuilder(function.append_basic_block())
    with ConfigStack().enter(flags):
        context.call_conv.call_function(builder, context.declare_function(module, result.fndesc), types.void, arguments, function.args)
    builder.ret_void()
    library.add_ir_module(module)
    optimize = library._optimize_final_module

    def optimize_for_one() -> None:
        # Nobody else calls what the kernel calls: it moves into the kernel, or goes. So do errors, since nothing looks at the status.
        for each in library._final_module.functions:
            if not each.is_declaration and each.name != name:
                each.linkage = "internal"
        library._final_module.get_function(result.fndesc.mangled_name).add_function_attribute("alwaysinline")
        optimize()

    # Finalizing makes the one optimized module of the kernel and all it uses. What it does after that, machine code in this process'
    # memory, is not wanted.
    library._optimize_final_module, library._finalize_final_module = optimize_for_one, lambda: None
    library.finalize()
    # numba's counters of references went with the last pass; their functions are still there.
    sweep = llvm.create_new_module_pass_manager()
    sweep.add_global_dead_code_eliminate_pass()
    sweep.run(library._final_module, library._codegen._pass_builder())
    return library._final_module
